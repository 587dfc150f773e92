"""Trains the same run in PyTorch and here, compares every number at each step, and says what could explain an error.

    python -m cifar_jax lockstep --config=configs/cnn6_adam.py [--steps N] [--float64] [--config.KEY=VALUE]

Both sides start from the weights that torch draws from the config's seed and see the same images in the same order
with the same flips. In float64 they are then left to themselves, and everything must stay within 1e-10. In float32
two correct runs part within a few dozen steps, so each step starts from torch's state, and has a bound of its own.
"""

import json
from pathlib import Path

from cifar_jax.command_line import Parser, integer, path
from cifar_jax.errors import InputError
from cifar_jax.runs.config import validate
from cifar_jax.runs.config_flags import add_config, parse, required_config


def main(argv: list[str]) -> int:
    """Runs the command; returns 0 if everything stayed inside its tolerance and 1 if not.

    Raises:
      InputError: something in the flags, the config or the data cannot be used.
    """
    parser = Parser("lockstep", __doc__)
    add_config(parser, default=None)
    parser.add_argument("--steps", type=integer(1), default=10, metavar="N", help="number of updates (10)")
    parser.add_argument("--float64", action="store_true", help="compare in double precision")
    parser.add_argument("--png", type=path, metavar="FILE", help="picture of the errors; under runs/ unless given")
    parser.add_argument("--json", type=path, metavar="FILE", help="for the figures")
    given = parse(parser, argv)
    config, name = required_config(given), given.config_name
    if given.float64:
        config.dtype = "float64"
    validate(config)
    if config.dtype == "bfloat16":
        raise InputError("dtype must be float32 or float64 for a comparison with PyTorch, got 'bfloat16'.")
    # Here, as they import torch, which --help does without.
    import jax

    from cifar_jax.data import load_dataset
    from cifar_jax.data.dataset import take
    from cifar_jax.data.order import steps_per_epoch
    from cifar_jax.devices.select import select_devices
    from cifar_jax.parity.lockstep.plot import draw_errors
    from cifar_jax.parity.lockstep.run import build, heading, row, run, to_json, verdict
    from cifar_jax.runs.provenance import provenance

    jax.config.update("jax_enable_x64", config.dtype == "float64")
    # The CPU unless another is insisted on: an accelerator's float32 convolutions are rounder than float32.
    select_devices("cpu" if config.platform == "auto" else config.platform)
    origin = provenance()
    data = config.data
    dataset = take(load_dataset(data.name, data.dir), data.limit_train, data.limit_test)
    if steps_per_epoch(len(dataset.train.labels), data.batch_size, data.sampler) == 0:
        raise InputError(
            f"data.batch_size must be at most the number of training images, {len(dataset.train.labels)}, with "
            f"data.sampler={data.sampler}, got {data.batch_size}."
        )
    print(heading(name, config, given.steps, len(dataset.train.labels)), flush=True)
    report = run(build(config, dataset), steps=given.steps, on_step=lambda step: print(row(step), flush=True))
    print(verdict(report), flush=True)
    picture = Path(given.png or f"runs/lockstep_{name}_{config.dtype}.png")
    draw_errors(
        [step.errors for step in report.record.steps], report.record.tolerance,
        f"{name}, {config.dtype}: PyTorch against JAX", picture,
    )  # fmt: skip
    print(f"Errors by step: {picture}")
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(to_json(report, name, config, origin), indent=1) + "\n")
    return 0 if report.outside is None else 1
