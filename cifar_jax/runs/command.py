"""Trains what a config names, or evaluates what it has trained.

    python main.py --config=configs/cnn6_adam.py --config.data.dir=FOLDER
    python main.py --config=configs/cnn6_adam.py --config.data.dir=FOLDER --mode=evaluate

`python -m cifar_jax train` and `... evaluate` are the same. A run that was stopped goes on where it was when the same
command is given again.
"""

from pathlib import Path

from absl import logging

from cifar_jax.command_line import Parser, add_job, path
from cifar_jax.devices.cluster import find_place
from cifar_jax.devices.distributed import joined
from cifar_jax.devices.interrupt import interruptible
from cifar_jax.runs.config_flags import add_config, keys_help, parse


def _parse(command: str, argv: list[str]):
    parser = Parser(command, __doc__)
    add_config(parser, default="default")
    parser.add_argument(
        "--workdir", type=path, metavar="DIR", help="folder of the run; runs/NAME-OF-CONFIG unless given"
    )
    # Orbax warns of a checkpoint that is only read.
    parser.add_argument(
        "--verbosity", type=int, default=-1 if command == "train" else -2, metavar="N",
        help="1 shows what the libraries log",
    )  # fmt: skip
    add_job(parser)
    parser.epilog = keys_help()
    arguments = parse(parser, argv)
    logging.set_verbosity(arguments.verbosity)
    place = find_place(arguments.coordinator, arguments.processes, arguments.process_id)
    return arguments.config, Path(arguments.workdir or Path("runs") / arguments.config_name), place


def train(argv: list[str]) -> None:
    """Trains what the command line says.

    Raises:
      InputError: something in it, in the folder or the data cannot be used; nothing was compiled or written.
      DivergedError: a run diverged.
      Interrupted: as the signal asked; what was saved is kept.
    """
    config, workdir, place = _parse("train", argv)
    with interruptible() as interrupt, joined(place, interrupt) as job:
        from cifar_jax.runs.train import train_runs

        train_runs(config, workdir, check_stop=interrupt.check, job=job)


def evaluate(argv: list[str]) -> None:
    """Evaluates the saved epochs of the run that the command line names.

    Raises:
      InputError: something in it, in the folder or the data cannot be used.
      Interrupted: as the signal asked.
    """
    config, workdir, place = _parse("evaluate", argv)
    with interruptible() as interrupt, joined(place, interrupt) as job:
        from cifar_jax.runs.train import evaluate_runs

        evaluate_runs(config, workdir, job=job)
