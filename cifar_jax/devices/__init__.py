"""Where it runs: choosing devices, sharing batches among them, jobs of many processes, signals."""
