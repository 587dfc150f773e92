"""Whether all arms train the same: their losses, step by step and by epoch, and the images that they count.

They start from the same weights and see the same images in the same order with the same flips, so the first loss may
differ by rounding alone. Then runs part: an update turns rounding into another direction, which grows step by step. The
bounds hold the beginning tightly and the rest by its mean, which is what an arm that trains less would miss.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

EARLY_STEPS = 8
# Later, losses are small and swing: two correct runs differ by more than could tell them from one that does less.
EARLY_EPOCHS = 3


class Bounds(NamedTuple):
    """Relative differences of the loss that are allowed.

    first: of the first step, where weights and images are equal.
    early: of each of the next steps, up to `EARLY_STEPS`.
    epoch: of the mean over the steps that both made, of each epoch up to `EARLY_EPOCHS`.
    test: of the loss on the test images after each of these epochs. It swings by tenths from one correct run to another
      while the running statistics follow weights that move fast; without the statistics it would be off by more.
    """

    first: float
    early: float
    epoch: float
    test: float


# By how products are rounded, to 24, 11 or 8 bits; ten times or more of what was measured.
BOUNDS = {
    "float32": Bounds(first=1e-5, early=2e-3, epoch=0.02, test=0.25),
    "tensorfloat32": Bounds(first=1e-3, early=1e-2, epoch=0.03, test=0.25),
    "bfloat16": Bounds(first=1e-2, early=3e-2, epoch=0.05, test=0.25),
}
# The arm that the others are held against: the first of these that ran.
REFERENCES = ("P1", "P0", "P1L", "P2", "J0", "J1")


def bounds_of(products: str, *, resized: bool) -> Bounds:
    """The bounds of a run whose products are rounded so.

    Where images are `resized`, PyTorch on a device does so in floating point, and misses one pixel in a thousand of
    Pillow's by one level of 255.
    """
    bounds = BOUNDS[products]
    return bounds._replace(first=max(bounds.first, 5e-5), early=max(bounds.early, 2e-2)) if resized else bounds


def rounding(dtype: str, device: str, precision: str) -> str:
    """The key of `BOUNDS` for a run: float32 on a GPU may round its products to TensorFloat-32."""
    return precision if dtype == "float32" and device == "gpu" and precision == "tensorfloat32" else dtype


def compare(runs: Mapping[str, Sequence[Sequence[dict[str, Any]]]], bounds: Bounds) -> dict[str, Any]:
    """Holds each arm's runs against the reference's first.

    Args:
      runs: by arm, of each of its processes, the `epochs` that `worker.measure` gives.
      bounds: what may differ.

    Returns:
      `reference`, `bounds`, `largest` (by arm, the largest difference of each kind) and `disagree`, a sentence for each
      arm that is outside.
    """
    reference = next(name for name in REFERENCES if name in runs)
    expected = runs[reference][0]
    largest, disagree = {}, []
    for arm, processes in runs.items():
        found = [_differences(epochs, expected) for epochs in processes]
        largest[arm] = {kind: max(each[kind][0] for each in found) for kind in Bounds._fields}
        said = next((each["images"] for each in found if each["images"]), None)
        for kind, bound in bounds._asdict().items():
            worst, where = max((each[kind] for each in found), key=lambda pair: pair[0])
            if not said and not worst <= bound:
                said = f"{where} is {worst:.1e} off {reference}'s, more than {bound:g}"
        if said:
            disagree.append(f"{arm} disagrees: {said}.")
    return {"reference": reference, "bounds": bounds._asdict(), "largest": largest, "disagree": disagree}


def _differences(epochs: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of each kind, the largest relative difference and where it stands; NaN counts as infinite."""
    first = _relative(epochs[0]["losses"][:1], expected[0]["losses"][:1])
    early = _relative(epochs[0]["losses"][1:EARLY_STEPS], expected[0]["losses"][1:EARLY_STEPS])
    found = {
        "first": (first.max(), "the loss of step 1"),
        "early": (early.max(initial=0), f"the loss of step {2 + int(early.argmax()) if early.size else 1}"),
        "epoch": (0.0, ""),
        "test": (0.0, ""),
        "images": None,
    }
    for number, (ours, theirs) in enumerate(zip(epochs, expected, strict=False), 1):
        for phase in ("train", "test"):
            seen, due = ours[f"{phase}_images"], theirs[f"{phase}_images"]
            if ours["whole"] and theirs["whole"] and seen != due and not found["images"]:
                found["images"] = f"epoch {number} counted {seen} images in {phase}, not {due}"
        if number > EARLY_EPOCHS:
            continue
        both = min(len(ours["losses"]), len(theirs["losses"]))
        means = [np.mean(row["losses"][:both]) for row in (ours, theirs)]
        found["epoch"] = max(
            found["epoch"], (_relative([means[0]], [means[1]]).max(), f"the mean loss of epoch {number}")
        )
        if not (ours["whole"] and theirs["whole"]):
            continue
        found["test"] = max(
            found["test"],
            (_relative([ours["test_loss"]], [theirs["test_loss"]]).max(), f"the test loss of epoch {number}"),
        )
    return found


def _relative(ours, theirs) -> np.ndarray:
    n = min(len(ours), len(theirs))
    ours, theirs = np.asarray(ours[:n], float), np.asarray(theirs[:n], float)
    return np.nan_to_num(np.abs(ours - theirs) / np.abs(theirs), nan=np.inf)
