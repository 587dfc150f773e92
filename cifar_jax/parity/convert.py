"""Converts weights and whole runs, from PyTorch's files to ours and back: convert IN OUT.

    python -m cifar_jax convert half.pt runs/half --config=configs/cnn6_adam.py --config.data.dir=FOLDER
    python -m cifar_jax convert runs/half half.pt

One of the two is a file, .pt, .pth or .safetensors, the other the folder of a run, as `main.py --workdir` takes it. A
file that goes in needs the config of the run that it belongs to; a folder has its own, and its newest checkpoint goes
out. The data set must be at hand, which tells how many classes and steps there are.

A .pt or .pth file holds either the network alone, `network.state_dict()`, or, as saved at the end of an epoch,

    {
        "model": network.state_dict(),
        "optimizer": optimizer.state_dict(),    # of network.parameters(); these three may be absent
        "scheduler": scheduler.state_dict(),    # after this epoch's scheduler.step()
        "epoch": 3,                             # finished epochs, from 1
    }

A .safetensors file holds the network alone. The network's keys are those of `cifar_jax.parity.state_dict`. Its
`num_batches_tracked` is where the run stands: it must come to whole epochs of the config. Without "optimizer" the
run goes on from there with an optimizer that has seen nothing. Anything missing, unused, misshapen or different from
the config is an error. Out comes the whole of it, without "scheduler" where the config's is constant.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from cifar_jax.command_line import Parser, path
from cifar_jax.data.order import steps_per_epoch
from cifar_jax.errors import InputError
from cifar_jax.nn.layers import running_stats
from cifar_jax.parity.optimizer_state import (
    check_options,
    check_scheduler,
    from_torch,
    next_rate,
    set_position,
    to_torch,
)
from cifar_jax.parity.state_dict import from_state_dict, to_state_dict
from cifar_jax.parity.torch_file import SUFFIXES, read_file, write_file
from cifar_jax.runs.build import Experiment, build, prepare
from cifar_jax.runs.checkpoint import Checkpoints
from cifar_jax.runs.config import validate
from cifar_jax.runs.config_flags import add_config, parse
from cifar_jax.runs.state import TrainState
from cifar_jax.runs.workdir import read_config, write_config


class Saved(NamedTuple):
    """What a file holds; None for what it lacks."""

    model: dict[str, np.ndarray]
    optimizer: dict[str, Any] | None = None
    scheduler: dict[str, Any] | None = None
    epoch: int | None = None


def main(argv: list[str]) -> int:
    """Converts as the arguments say."""
    parser = Parser("convert", __doc__)
    parser.add_argument("source", type=path, metavar="IN", help="a file, or the folder of a run")
    parser.add_argument("target", type=path, metavar="OUT", help="the other of the two")
    add_config(parser, default=None)
    arguments = parse(parser, argv)
    source, target, config = arguments.source, arguments.target, arguments.config
    into = source.suffix in SUFFIXES
    if into == (target.suffix in SUFFIXES):
        raise InputError(
            f"One of IN and OUT must be a file ({', '.join(SUFFIXES)}) and the other the folder of a run, "
            f"got {str(source)!r} and {str(target)!r}."
        )
    if into:
        if config is None:
            raise InputError(f"--config must name the config that {source} belongs to, got nothing.")
        epoch = file_to_run(source, target, config)
    else:
        if config is not None:
            raise InputError(f"--config must not be given with a folder, which has its own, got one with {source}.")
        epoch = run_to_file(source, target)
    print(f"Converted {source} to {target}: the run stands after epoch {epoch}", flush=True)
    return 0


def file_to_run(source: Path, target: Path, config: ml_collections.ConfigDict) -> int:
    """Makes the folder of a run of `config` from a file; returns the epoch after which the run stands.

    Raises:
      InputError: the file cannot be read, does not fit the config, or the folder is not empty; nothing was written.
    """
    validate(config)
    if config.norm.compare:
        raise InputError(
            f"norm.compare must be (), as a file holds the averages of one rule, got {tuple(config.norm.compare)}."
        )
    saved = split(read_file(source), str(source))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"OUT must be a new or empty folder, got {str(target)!r}.")
    dataset = prepare(config, target)
    state, epoch = to_state(saved, config, build(config, dataset), str(source))
    write_config(target, config)
    checkpoints = Checkpoints(target / "checkpoints")
    checkpoints.save(epoch, state, [])
    checkpoints.close()
    return epoch


def run_to_file(source: Path, target: Path) -> int:
    """Writes the newest checkpoint of a run into a file; returns its epoch.

    Raises:
      InputError: the folder holds no run, it has no checkpoint, or the file exists.
    """
    if not source.is_dir():
        raise InputError(f"IN must be a file ({', '.join(SUFFIXES)}) or the folder of a run, got {str(source)!r}.")
    if target.exists() or not target.absolute().parent.is_dir():
        raise InputError(f"OUT must be a new file in a folder that exists, got {str(target)!r}.")
    config = read_config(source)
    experiment = build(config, prepare(config, source, read_only=True))
    if not (source / "checkpoints").is_dir():
        raise InputError(f"IN must hold a checkpoint, got {str(source)!r}.")
    checkpoints = Checkpoints(source / "checkpoints", read_only=True)
    epoch = checkpoints.newest()
    if epoch is None:
        raise InputError(f"IN must hold a checkpoint, got {str(source)!r}.")
    state, _ = checkpoints.restore(epoch, experiment.state)
    checkpoints.close()
    model = to_state_dict(state.params, running_stats(state.batch_stats), updates=int(state.step))
    if target.suffix == ".safetensors":
        write_file(target, model)
    else:
        write_file(target, {"model": model, **to_torch(state, epoch, config)})
    return epoch


def split(content: Any, source: str) -> Saved:
    """The parts of a file's content.

    Raises:
      InputError: it is laid out in another way.
    """
    if _is_state_dict(content):
        return Saved(content)
    if isinstance(content, dict) and _is_state_dict(content.get("model")) and not content.keys() - set(Saved._fields):
        saved = Saved(**content)
        parts = isinstance(saved.optimizer, dict | None) and isinstance(saved.scheduler, dict | None)
        if parts and isinstance(saved.epoch, int | None):
            return saved
    what = f"a dict of {', '.join(map(str, content)) or 'nothing'}" if isinstance(content, dict) else type(content)
    raise InputError(
        f"{source} must hold a network's state_dict, or a dict of one as model and, where there are, optimizer, "
        f"scheduler and epoch, got {what}."
    )


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(array, np.ndarray) for array in value.values())


def to_state(
    saved: Saved, config: ml_collections.ConfigDict, experiment: Experiment, source: str
) -> tuple[TrainState, int]:
    """The state that a file holds, and the epoch after which it stands.

    Raises:
      InputError: something is missing, unused, misshapen or different from the config.
    """
    like = experiment.state
    types = {array.dtype for array in saved.model.values() if array.dtype != np.int64}
    expected = like.params["linear"]["kernel"].dtype
    if types - {expected}:
        raise InputError(
            f"{source} must hold {expected} weights with dtype={config.dtype}, got {' and '.join(map(str, types))}."
        )
    variables = from_state_dict(saved.model, like.params, like.batch_stats, source=source)
    data = config.data
    steps = steps_per_epoch(len(experiment.train.labels), data.batch_size, data.sampler)
    epoch, rest = divmod(variables.updates, steps)
    if rest or epoch < 0:
        raise InputError(
            f"{source} must stand at the end of an epoch, which has {steps} steps with data.batch_size="
            f"{data.batch_size}, got num_batches_tracked={variables.updates}."
        )
    if saved.epoch is not None and saved.epoch != epoch:
        raise InputError(
            f"{source} must give its finished epochs as epoch, {epoch} by num_batches_tracked={variables.updates} and "
            f"{steps} steps each, got {saved.epoch!r}."
        )
    opt_state = set_position(like.opt_state, variables.updates)
    if saved.optimizer is not None:
        check_options(saved.optimizer, config.optimizer, next_rate(config, epoch), source)
        opt_state = from_torch(saved.optimizer, opt_state, like.params, source)
    if saved.scheduler is not None:
        check_scheduler(saved.scheduler, config.schedule, epoch, source)
    state = like.replace(
        step=jnp.asarray(variables.updates, like.step.dtype),
        params=jax.device_put(variables.params),
        batch_stats=jax.device_put(variables.batch_stats),
        opt_state=opt_state,
    )
    return state, epoch
