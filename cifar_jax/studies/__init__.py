"""Work on many runs: the table with its report, and the benchmark. Each stands on its own."""
