"""The CIFAR-100 BatchNorm lecture in JAX: the same recipes and numbers as PyTorch, and faster."""
