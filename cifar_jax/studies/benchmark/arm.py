"""What every arm offers to the process that measures it."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

# Whatever the limit, so many steps are made: enough to compare losses, and to measure.
LEAST_STEPS = 10


class Trained(NamedTuple):
    """An epoch of training: the mean loss of each step, float `[steps]`, the images seen, and whether it was whole."""

    losses: np.ndarray
    images: int
    whole: bool


class Evaluated(NamedTuple):
    """An evaluation: mean loss, percent correct, images seen."""

    loss: float
    accuracy: float
    images: int


@runtime_checkable
class Arm(Protocol):
    """A way to train the recipe. Its methods return when the device has finished."""

    def draw(self, epoch: int) -> None:
        """Does whatever of an epoch's random numbers the arm does not count as training."""

    def train(self, epoch: int, on_first_step: Callable[[], None], expired: Callable[[], bool]) -> Trained:
        """Trains an epoch, numbered from 0.

        `on_first_step` is called when the first step, or what the arm starts as one piece, is finished. An arm that
        goes step by step stops after `LEAST_STEPS` as soon as `expired` says so.
        """

    def evaluate(self) -> Evaluated:
        """Scores the test images."""

    def peak_device_memory(self) -> int | None:
        """Most bytes of the accelerator's memory in use so far; None on the CPU."""

    def origin(self) -> dict:
        """Versions and device, for the record."""
