"""Ways in which people get a port wrong, each as an experiment on a copy of the PyTorch model."""
