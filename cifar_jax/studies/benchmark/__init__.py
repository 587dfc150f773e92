"""The same training in PyTorch, in plain Flax and here: how fast each is, and that all of them train alike."""
