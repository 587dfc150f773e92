"""The ledger as one HTML page."""

from collections.abc import Sequence
from typing import NamedTuple


class Picture(NamedTuple):
    """Curves of up to three sides over one axis.

    lines: values of each curve by its name; names that begin with "torch", "ours" or "naive" get the side's colour.
    """

    title: str
    xlabel: str
    ylabel: str
    x: Sequence[float]
    lines: dict[str, Sequence[float]]
    xlog: bool = False
    ylog: bool = False
    steps: bool = False
