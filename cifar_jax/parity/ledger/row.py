"""What a row of the ledger is, how its three sides are compared, and when it passes."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from cifar_jax.parity.ledger.page import Picture


class Measurement(NamedTuple):
    """What one run of a row gave.

    torch, ours, naive: one value of each side, as text.
    error, naive_error: distance of ours, and of the naive version, from torch; NaN where it has none.
    note: what else was measured; may be empty.
    """

    torch: str
    ours: str
    naive: str
    error: float
    naive_error: float
    note: str = ""


class Row(NamedTuple):
    """One difference between PyTorch and JAX.

    id: its name, as the catalogue and `--only` spell it.
    title: what it is about, in a few words.
    compared: which number stands in the table.
    explanation: what goes wrong and why, in two or three sentences.
    wrong: the naive lines of code; `right`: those that mean what PyTorch means.
    tolerance: the largest error that passes; `reason`: why it is this large.
    run: measures the three sides.
    naive_fails: whether the naive version must miss the tolerance; False where both frameworks agree.
    stable: whether the naive error is the same on every machine, to two digits.
    picture: draws what a number does not show; None where the number says it all.
    """

    id: str
    title: str
    compared: str
    explanation: str
    wrong: str
    right: str
    tolerance: float
    reason: str
    run: Callable[[], Measurement]
    naive_fails: bool = True
    stable: bool = True
    picture: Callable[[], Picture] | None = None


PASS = "pass"
AGREE = "pass, nothing fails"
MISS = "OURS MISSES"
CANNOT_FAIL = "NAIVE PASSES"
UNEXPECTED = "NAIVE FAILS"


def verdict(row: Row, measurement: Measurement) -> str:
    """PASS or AGREE; or what is wrong: ours misses the tolerance, or the naive version does not do what is claimed."""
    # Not "error > tolerance", which a NaN would pass.
    if not measurement.error <= row.tolerance:
        return MISS
    naive_passes = measurement.naive_error <= row.tolerance
    if row.naive_fails:
        return CANNOT_FAIL if naive_passes else PASS
    return AGREE if naive_passes else UNEXPECTED


def passed(verdict: str) -> bool:
    """Whether a verdict is a good one."""
    return verdict in (PASS, AGREE)


def compare(torch, ours, naive, *, note: str = "", unit: float = 1.0) -> Measurement:
    """Three arrays of one shape: largest differences in units of `unit`, and the values where the naive one is worst.

    Raises:
      ValueError: the shapes differ, so that there is no difference to take.
    """
    torch, ours, naive = (np.asarray(side, np.float64) for side in (torch, ours, naive))
    if not torch.shape == ours.shape == naive.shape:
        raise ValueError(f"compare takes arrays of one shape, got {torch.shape}, {ours.shape} and {naive.shape}.")
    difference = np.abs(naive - torch)
    worst = np.unravel_index(np.argmax(difference), difference.shape)
    values = (number(float(side[worst])) for side in (torch, ours, naive))
    error, naive_error = (float(np.max(np.abs(side - torch))) / unit for side in (ours, naive))
    return Measurement(*values, error, naive_error, note)


def compare_facts(torch: str, ours: str, naive: str, *, note: str = "") -> Measurement:
    """Three facts in words; the error is 0 where one equals torch's, else 1."""
    return Measurement(torch, ours, naive, float(ours != torch), float(naive != torch), note)


def number(value: float) -> str:
    """A number in six digits."""
    return f"{value:.6g}" if math.isfinite(value) else str(value)
