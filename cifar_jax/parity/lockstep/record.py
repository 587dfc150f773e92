"""Two runs side by side, one in PyTorch and one here: how far apart each quantity is at each step."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from cifar_jax.parity.lockstep.our_side import Ours, OurStep, load, rates, take_step
from cifar_jax.parity.lockstep.torch_side import Flips, TorchSide, TorchStep
from cifar_jax.parity.state_dict import to_state_dict
from cifar_jax.parity.twin import read_arrays
from cifar_jax.runs.steps import Batch

# In the order of cause and effect within a step.
QUANTITIES = (
    "weights", "lr", "images", "input", "logits", "loss", "gradient", "running_mean", "running_var", "moment",
    "parameter", "epoch_loss",
)  # fmt: skip

# Double precision, runs left to themselves. Rounding came to at most 3e-11 over ten steps of ten runs (a small
# tensor's value over its largest; losses and logits stay below 5e-12). A difference in meaning lies far above
# 1e-10: a learning rate rounded to float32, the smallest of them, costs 1.5e-8 of the rate.
FLOAT64 = dict.fromkeys(QUANTITIES, 1e-10)

# Single precision, each step from torch's state, in units of the largest value (2^-24 is 6e-8): sums of 10^3 to 10^5
# terms in another order, through up to ten layers. Gradients part further: where two values of a max pool, or a ReLU's
# input and 0, are nearly equal, rounding may choose the other, which moves a gradient by one pixel's share. Narrow
# networks showed 4e-2 at such steps and 5e-5 at the others; what a gradient means is judged in double precision.
# The optimizer's part, from the same gradients, is a few roundings.
FLOAT32 = {
    "weights": 0.0, "lr": 1.2e-7, "images": 0.0, "input": 1.2e-7, "logits": 2e-5, "loss": 2e-6, "gradient": 1e-1,
    "running_mean": 1e-5, "running_var": 1e-5, "moment": 1e-6, "parameter": 1e-6, "epoch_loss": 2e-6,
}  # fmt: skip


class Step(NamedTuple):
    """The errors of one step, by quantity and tensor. Counts begin at 0; `ragged` marks an epoch's short batch."""

    step: int
    epoch: int
    images: int
    ragged: bool
    lr: float
    errors: dict[str, dict[str, float]]


class Outside(NamedTuple):
    """The first tensor to leave its tolerance."""

    step: int
    epoch: int
    quantity: str
    tensor: str
    error: float
    tolerance: float


class Witness(NamedTuple):
    """The first step with a tensor outside its tolerance, in full.

    before: torch's state_dict before the step.
    """

    step: Step
    theirs: TorchStep
    ours: OurStep | None
    before: dict[str, np.ndarray]


class Record(NamedTuple):
    """What a comparison came to.

    weights: errors of the initial weights.
    our_rates, their_rates: the learning rate of every update of the whole schedule.
    base_lr: what errors of the rates are measured by.
    same_values: whether the initial weights are torch's numbers, if perhaps in other places.
    spread: how many times as wide as torch's the initial weights lie, in the tensor where that is furthest from 1.
    """

    steps: list[Step]
    tolerance: dict[str, float]
    weights: dict[str, float]
    same_values: bool
    spread: float
    our_rates: np.ndarray
    their_rates: np.ndarray
    steps_per_epoch: int
    base_lr: float
    witness: Witness | None

    def rate_errors(self) -> np.ndarray:
        """Of every update of the schedule, in units of the base rate."""
        return np.abs(self.our_rates.astype(np.float64) - self.their_rates) / self.base_lr

    def first_outside(self) -> Outside | None:
        """The first tensor outside its tolerance, by step, then by cause and effect; None if all are inside."""
        for tensor, error in self.weights.items():
            if error > self.tolerance["weights"]:
                return Outside(0, 0, "weights", tensor, error, self.tolerance["weights"])
        for step in self.steps:
            for quantity, tensor, error in outside(step, self.tolerance):
                return Outside(step.step, step.epoch, quantity, tensor, error, self.tolerance[quantity])
        late = np.flatnonzero(self.rate_errors() > self.tolerance["lr"])
        if len(late):
            step, error = int(late[0]), float(self.rate_errors()[late[0]])
            return Outside(step, step // self.steps_per_epoch, "lr", "lr", error, self.tolerance["lr"])
        return None

    def largest(self) -> dict[str, float]:
        """The largest error of each quantity."""
        errors = {"weights": max(self.weights.values()), "lr": float(self.rate_errors().max())}
        for step in self.steps:
            for quantity, tensors in step.errors.items():
                errors[quantity] = max([errors.get(quantity, 0.0), *tensors.values()])
        return {quantity: errors[quantity] for quantity in QUANTITIES if quantity in errors}


def outside(step: Step, tolerance: dict[str, float]) -> list[tuple[str, str, float]]:
    """Quantity, tensor and error of all that is outside its tolerance at a step, causes first."""
    found = []
    for quantity in QUANTITIES:
        tensors = list(step.errors.get(quantity, {}).items())
        if quantity == "gradient":
            tensors.reverse()  # it flows from the last layer to the first
        found += [(quantity, tensor, error) for tensor, error in tensors if error > tolerance[quantity]]
    return found


def difference(ours, theirs, *, scale: float | None = None) -> float:
    """The larger of the greatest difference and the same in units of the tensor's largest value.

    Infinite for another shape and for a number that is none on one side only. `scale` replaces the largest value.
    """
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    if ours.shape != theirs.shape:
        return math.inf
    if not ours.size:
        return 0.0
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    if not np.array_equal(np.isfinite(ours), np.isfinite(theirs)):
        return math.inf
    usual = np.isfinite(ours)
    greatest = float(np.abs(ours - theirs)[usual].max(initial=0.0))
    largest = float(np.abs(theirs)[usual].max(initial=0.0)) if scale is None else scale
    return greatest / min(1.0, largest) if largest else greatest


class _Turn(NamedTuple):
    """One step's batch on both sides; ours is None where our epoch is over, `surplus` counts what it has left."""

    epoch: int
    last: bool
    indices: np.ndarray
    batch: Batch | None
    surplus: int


def _turns(theirs: Callable[[int], list[np.ndarray]], ours: Callable[[int], list[Batch]]) -> Iterator[_Turn]:
    for epoch in itertools.count():
        their_batches, our_batches = theirs(epoch), ours(epoch)
        surplus = len(our_batches) - len(their_batches)
        for place, indices in enumerate(their_batches):
            last = place == len(their_batches) - 1
            batch = our_batches[place] if place < len(our_batches) else None
            yield _Turn(epoch, last, indices, batch, max(surplus, 0) if last else 0)


def compare_runs(
    theirs: TorchSide,
    ours: Ours,
    *,
    steps: int,
    epoch_batches: Callable[[int], list[np.ndarray]],
    flips: Flips,
    their_rates: list[float],
    common_state: bool,
    tolerance: dict[str, float],
    on_step: Callable[[Step], None] = lambda step: None,
) -> Record:
    """Runs both sides for `steps` updates.

    Args:
      theirs: PyTorch's side, before its first step.
      ours: our side.
      steps: number of updates.
      epoch_batches: torch's batches of an epoch, as positions in the data.
      flips: which images of a step's batch torch mirrors, from the step and their number.
      their_rates: torch's learning rate of each epoch.
      common_state: False leaves both runs to themselves after the same start. True starts each of our steps from
        torch's parameters, statistics and moments, and gives our optimizer torch's gradients, so that each error is
        of one piece alone.
      tolerance: by quantity.
      on_step: called with the errors of each step as it is done.
    """
    before = read_arrays(theirs.network)
    start = to_state_dict(ours.state.params, ours.state.batch_stats)
    weights = {name: difference(start[name], before[name]) for name in before}
    same_values = all(np.array_equal(np.sort(start[name], None), np.sort(before[name], None)) for name in before)
    spread = _spread(start, before)
    whole, base_lr = len(epoch_batches(0)[0]), their_rates[0]
    their_lr = np.repeat(np.asarray(their_rates), len(epoch_batches(0)))
    state = load(ours.state, before, {}) if common_state else ours.state
    rows, witness, seen = [], None, []
    for number, turn in zip(range(steps), _turns(epoch_batches, ours.batches), strict=False):
        count = len(turn.indices)
        their, our = theirs.step(turn.indices, flips(number, count)), None
        if turn.batch is not None:
            state, our = take_step(ours, state, turn.batch, gradient=their.gradient if common_state else None)
        seen.append((our, their.loss, count))
        errors = _errors(our, their, turn, base_lr)
        if turn.last:
            errors["epoch_loss"] = {"epoch_loss": _epoch_loss_error(ours, seen)}
            seen = []
            theirs.end_epoch()
        rows.append(Step(number, turn.epoch, count, count < whole, their.lr, errors))
        on_step(rows[-1])
        if witness is None and outside(rows[-1], tolerance):
            witness = Witness(rows[-1], their, our, before)
        before = their.state_dict
        if common_state:
            # A fault may have changed the types of ours.
            like_start = state.replace(params=ours.state.params, batch_stats=ours.state.batch_stats)
            state = load(like_start, their.state_dict, their.moments)
    return Record(
        steps=rows, tolerance=tolerance, weights=weights, same_values=same_values, spread=spread,
        our_rates=rates(ours, len(their_lr)), their_rates=their_lr, steps_per_epoch=len(epoch_batches(0)),
        base_lr=base_lr, witness=witness,
    )  # fmt: skip


def _spread(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    """The greatest ratio of deviations, either way, over weights numerous enough to have one."""
    drawn = [name for name, array in theirs.items() if array.size >= 30 and array.std() > 0]
    ratios = [float(ours[name].std() / theirs[name].std()) for name in drawn]
    return max([1.0, *(max(ratio, 1 / max(ratio, 1e-30)) for ratio in ratios)])


def _epoch_loss_error(ours: Ours, seen: list[tuple[OurStep | None, float, int]]) -> float:
    """Of an epoch's mean loss over images."""
    theirs = sum(loss * count for _, loss, count in seen) / sum(count for _, _, count in seen)
    return difference(ours.epoch_loss([our.metrics for our, _, _ in seen if our is not None]), theirs)


def _errors(our: OurStep | None, their: TorchStep, turn: _Turn, base_lr: float) -> dict[str, dict[str, float]]:
    if our is None:
        return {"images": {"indices": math.inf}}

    def of(suffix):
        keys = [key for key in their.state_dict if key.endswith(suffix)]
        return {key: difference(our.state_dict[key], their.state_dict[key]) for key in keys}

    def of_moment(moment, name):
        if moment not in our.moments or moment not in their.moments:
            return math.inf
        return difference(our.moments[moment][name], their.moments[moment][name])

    loss = our.metrics.loss_sum / our.metrics.count
    return {
        "lr": {"lr": difference(our.lr, their.lr, scale=base_lr)},
        "images": {
            "indices": 0.0 if np.array_equal(our.indices, turn.indices) else math.inf,
            "count": difference(our.metrics.count, len(turn.indices)),
            "batches": float(turn.surplus),
        },
        "input": {"input": difference(our.input, their.input)},
        "logits": {"logits": difference(our.logits, their.logits)},
        "loss": {"loss": difference(loss, their.loss)},
        "gradient": {name: difference(our.gradient[name], array) for name, array in their.gradient.items()},
        "running_mean": of(".running_mean"),
        "running_var": of(".running_var"),
        "moment": {
            f"{name} {moment}": of_moment(moment, name)
            for moment in {**their.moments, **our.moments}
            for name in their.gradient
        },
        "parameter": {
            name: difference(our.state_dict[name], their.state_dict[name]) for name in their.gradient
        },
    }  # fmt: skip
