"""The lecture: BatchNorm, layers, networks, losses, optimizers, schedules and image transforms, as pure functions."""
