"""Both sides of a config, run in lockstep, and what the comparison says, as text and as JSON."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import torch
from ml_collections import ConfigDict

from cifar_jax.data.dataset import Dataset
from cifar_jax.parity import twin
from cifar_jax.parity.lockstep import our_side
from cifar_jax.parity.lockstep import record as compare
from cifar_jax.parity.lockstep.diagnosis import Setting, Suggestion, diagnose
from cifar_jax.parity.lockstep.torch_side import Flips, Preprocess, TorchSide, epoch_batches, flip_first_half
from cifar_jax.parity.state_dict import to_state_dict
from cifar_jax.runs import phases
from cifar_jax.runs.build import build as build_experiment


class Sides(NamedTuple):
    """Both sides of a config, and what they share.

    theirs: makes PyTorch's side, at its start.
    ours: our side, at the same start.
    epoch_batches, flips, their_rates: as `compare.compare_runs` takes them.
    setting: what the config says that matters to a diagnosis.
    """

    theirs: Callable[[], TorchSide]
    ours: our_side.Ours
    epoch_batches: Callable[[int], list[np.ndarray]]
    flips: Flips
    their_rates: list[float]
    setting: Setting


class Report(NamedTuple):
    """A comparison, the first tensor outside its tolerance, and the ledger's rows that could explain it, best first."""

    record: compare.Record
    outside: compare.Outside | None
    suggestions: list[Suggestion]


def build(config: ConfigDict, dataset: Dataset) -> Sides:
    """Both sides of a config that was validated."""
    data, optimizer, schedule, norm = config.data, config.optimizer, config.schedule, config.norm
    experiment = build_experiment(config, dataset)
    ours = our_side.from_experiment(experiment)
    dtype = getattr(torch, config.dtype)
    torch.manual_seed(config.seed)
    network = twin.create_twin(
        config.model.name, norm_rule=norm.rule, norm_momentum=norm.momentum, num_classes=len(dataset.class_names),
        stages=experiment.model.stages, epsilon=norm.epsilon,
    ).to(dtype)  # fmt: skip
    if config.model.init == "torch":
        start = twin.read_arrays(network)
    else:
        start = to_state_dict(ours.state.params, ours.state.batch_stats)
    ours = ours._replace(state=our_side.load(ours.state, start, {}))
    scheduler = {
        "name": schedule.name, "step_size": schedule.step_size, "gamma": schedule.gamma, "t_max": schedule.t_max,
    }  # fmt: skip

    def theirs():
        twin.load_arrays(network, start)
        its_optimizer = twin.create_optimizer(
            optimizer.name, network.parameters(), lr=optimizer.lr, momentum=optimizer.momentum,
            weight_decay=optimizer.weight_decay, b1=optimizer.b1, b2=optimizer.b2, eps=optimizer.eps,
        )  # fmt: skip
        return TorchSide(
            network, its_optimizer, twin.create_scheduler(optimizer=its_optimizer, **scheduler),
            Preprocess(data.image_size, data.normalize), *dataset.train, calls_per_epoch=schedule.calls_per_epoch,
        )  # fmt: skip

    def its_batches(epoch):
        order = np.asarray(experiment.draw_epoch(epoch)[0])
        return list(epoch_batches(order, data.batch_size, drop_last=data.sampler == "whole_batches"))

    def flips_of_each(step, count):
        # Our draws for a whole batch; of a ragged one, the first rows are real.
        epoch, place = divmod(step, len(its_batches(0)))
        drawn_before = phases.epoch_batches(experiment, experiment.draw_epoch(epoch))[place].flips
        if drawn_before is not None:
            return drawn_before[:count]
        key = jax.random.fold_in(experiment.state.key, step)
        return np.asarray(jax.random.bernoulli(key, 0.5, (data.batch_size,)))[:count]

    flips = {
        "flip": flips_of_each,
        "flip_first_half": flip_first_half,
        "none": lambda step, count: np.zeros(count, bool),
    }
    return Sides(
        theirs=theirs,
        ours=ours,
        epoch_batches=its_batches,
        flips=flips[data.augment],
        their_rates=twin.learning_rates(
            scheduler, lr=optimizer.lr, epochs=config.train.epochs, calls_per_epoch=schedule.calls_per_epoch
        ),
        setting=Setting(
            optimizer=optimizer.name,
            schedule=schedule.name,
            resized=data.image_size != 32,
            dtype=config.dtype,
            after_pool=tuple(
                1 + sum(map(len, experiment.model.stages[:i])) for i in range(1, len(experiment.model.stages))
            ),
        ),
    )


def run(sides: Sides, *, steps: int, on_step: Callable[[compare.Step], None] = lambda step: None) -> Report:
    """Compares both sides over `steps` updates, and looks for causes where they part.

    float64: left to themselves; where they part, once more from common states, so that the causes do not blur.
    float32: from common states. `on_step` is called with the errors of each step of the first comparison.
    """
    double = sides.setting.dtype == "float64"

    def compared(on_step, *, common_state):
        return compare.compare_runs(
            sides.theirs(), sides.ours, steps=steps, epoch_batches=sides.epoch_batches, flips=sides.flips,
            their_rates=sides.their_rates, common_state=common_state,
            tolerance=compare.FLOAT64 if double else compare.FLOAT32, on_step=on_step,
        )  # fmt: skip

    record = compared(on_step, common_state=not double)
    outside = record.first_outside()
    if outside is None:
        return Report(record, None, [])
    evidence = compared(lambda step: None, common_state=True) if double else record
    return Report(record, outside, diagnose(evidence, sides.setting))


_COLUMNS = {
    "lr": "lr", "input": "input", "logits": "logits", "loss": "loss", "gradient": "gradient",
    "running_mean": "mean", "running_var": "var", "moment": "moment", "parameter": "parameter",
}  # fmt: skip


def heading(name: str, config: ConfigDict, steps: int, images: int) -> str:
    """What is compared, and the head of the table of steps."""
    how = "left to themselves" if config.dtype == "float64" else "each step from torch's state"
    data, widths = config.data, config.model.stages or "the lecture's widths"
    return (
        f"{name}: PyTorch against JAX in {config.dtype}, {how}\n"
        f"{config.model.name}, {widths}; {steps} steps on {images:,} images of {data.name} at "
        f"{data.image_size}x{data.image_size}, batch {data.batch_size}\n"
        "Each figure is the worst tensor's: the larger of the greatest difference and the same over the largest value\n"
        "step epoch images" + "".join(f"{title:>10}" for title in _COLUMNS.values())
    )


def row(step: compare.Step) -> str:
    """The line of a step: the worst tensor's error of each quantity."""
    row = f"{step.step + 1:4} {step.epoch + 1:5} {step.images:6}"
    row += "".join(f"{_worst(step.errors.get(quantity)):>10}" for quantity in _COLUMNS)
    if "epoch_loss" in step.errors:
        row += f"\n     epoch {step.epoch + 1}: mean loss {_worst(step.errors['epoch_loss'])}"
    return row


def verdict(report: Report) -> str:
    """The largest errors beside their tolerances and, where one is outside, where it began and what may explain it."""
    record, first = report.record, report.outside
    largest = record.largest()
    lines = [
        "largest          " + "".join(f"{largest.get(quantity, 0):>10.1e}" for quantity in _COLUMNS),
        "tolerance        " + "".join(f"{record.tolerance[quantity]:>10.1e}" for quantity in _COLUMNS),
        f"learning rates of all {len(record.their_rates):,} updates: {record.rate_errors().max():.1e}",
    ]
    if first is None:
        return "\n".join([*lines, "Everything is inside its tolerance."])
    where = f"step {first.step + 1}, epoch {first.epoch + 1}"
    lines += [
        f"First outside: {'before the first step' if first.quantity == 'weights' else where}: {first.quantity} "
        f"{first.tensor}, error {first.error:.1e}, tolerance {first.tolerance:.1e}",
        "Rows of the ledger that could explain it:",
    ]
    lines += [f"  {i}. {s.row}: {s.text}" for i, s in enumerate(report.suggestions, 1)] or ["  none"]
    return "\n".join(lines)


def _worst(errors: dict[str, float] | None) -> str:
    return "-" if not errors else f"{max(errors.values()):.1e}"


def to_json(report: Report, name: str, config: ConfigDict, origin: dict) -> dict:
    """The figures, with what is behind them."""
    record = report.record
    return {
        "config": name,
        "dtype": config.dtype,
        "widths": config.model.stages or None,
        "data": config.data.name,
        "image_size": config.data.image_size,
        "origin": {**origin, "versions": {**origin["versions"], "torch": torch.__version__}},
        "tolerance": record.tolerance,
        "largest": record.largest(),
        "steps": [
            {
                "step": step.step + 1,
                "epoch": step.epoch + 1,
                "images": step.images,
                "lr": step.lr,
                "errors": {quantity: max(tensors.values()) for quantity, tensors in step.errors.items() if tensors},
            }
            for step in record.steps
        ],
        "outside": None if report.outside is None else report.outside._asdict(),
        "suggestions": [s._asdict() for s in report.suggestions],
    }
