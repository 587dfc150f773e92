"""One run in PyTorch and here, in lockstep: every number compared at every step."""
