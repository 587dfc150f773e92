"""What the compilers for GPUs and TPUs make of our programs, with no such device at hand."""
