"""A run, from its config to its last checkpoint: build, step, epoch, train, and the run's folder."""
