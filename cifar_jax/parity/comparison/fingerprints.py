"""What an array holds, whatever the order of its elements: how values of both frameworks find their equals.

PyTorch keeps images as `[batch, channels, height, width]`, Flax as `[batch, height, width, channels]`, and a port may
reshape at other places. A fingerprint is the same for all orders of the same elements.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

# Two float64 results of equal formulas agree to about 1e-12; float32 constants in a model (a table of positions that
# was computed in single precision) bring 6e-8 of their own.
TOLERANCE = 2e-8


class Fingerprint(NamedTuple):
    """Size, sums of powers and extremes of an array's elements.

    mean, absolute: means of the elements and of their absolute values. rms: root of the mean square.
    cube: mean of the third powers over the mean square. low, high: the smallest and the largest element.
    """

    size: int
    mean: float
    absolute: float
    rms: float
    cube: float
    low: float
    high: float

    @property
    def finite(self) -> bool:
        """Whether all elements are finite numbers."""
        return bool(np.isfinite(self.rms))


def fingerprint(array: np.ndarray) -> Fingerprint:
    """The fingerprint of an array of numbers; booleans count as 0 and 1."""
    flat = np.asarray(array).reshape(-1)
    if flat.dtype != np.float64:
        flat = flat.astype(np.float64)
    if flat.size == 0:
        return Fingerprint(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    with np.errstate(all="ignore"):
        square = flat * flat
        mean_square = float(square.mean())
        cube = float(square @ flat) / flat.size
        return Fingerprint(
            flat.size,
            float(flat.mean()),
            float(np.abs(flat).mean()),
            float(np.sqrt(mean_square)),
            cube / mean_square if mean_square > 0 else 0.0,
            float(flat.min()),
            float(flat.max()),
        )


def agree(one: Fingerprint, other: Fingerprint, tolerance: float = TOLERANCE) -> bool:
    """Whether two fingerprints are those of equal elements; NaN and infinity equal nothing."""
    if one.size != other.size or not (one.finite and other.finite):
        return False
    spread = tolerance * max(one.rms, other.rms)
    extreme = tolerance * max(abs(one.low), abs(one.high), abs(other.low), abs(other.high))
    return (
        abs(one.mean - other.mean) <= spread
        and abs(one.absolute - other.absolute) <= spread
        and abs(one.rms - other.rms) <= spread
        and abs(one.cube - other.cube) <= 3 * extreme
        and abs(one.low - other.low) <= extreme
        and abs(one.high - other.high) <= extreme
    )


class Index:
    """Fingerprints by size, to find those that agree with a given one."""

    def __init__(self, fingerprints: Iterable[tuple[int, Fingerprint]]):
        """Takes pairs of a number that names a value and the value's fingerprint."""
        self._by_size: dict[int, list[tuple[int, Fingerprint]]] = {}
        for number, each in fingerprints:
            self._by_size.setdefault(each.size, []).append((number, each))

    def find(self, wanted: Fingerprint, tolerance: float = TOLERANCE) -> list[int]:
        """The numbers of all values that agree, in the order in which they were given."""
        return [number for number, each in self._by_size.get(wanted.size, ()) if agree(wanted, each, tolerance)]
