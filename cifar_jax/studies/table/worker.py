"""Trains one config under several seeds, each in a folder of its own, through one compilation.

    python -m cifar_jax.studies.table.worker --config=configs/cnn6_adam.py --seeds=0,1 --workdir=runs/table/cnn6_adam

This is the process that `python -m cifar_jax table` starts for each group of runs. A run that diverges is noted in
WORKDIR/failures, and the others go on. Exit codes are those of main.py: 1 where a run diverged.
"""

import argparse
import os
import sys
import threading
import time
from pathlib import Path

from cifar_jax.command_line import parse
from cifar_jax.devices.interrupt import Interrupted, interruptible
from cifar_jax.errors import DivergedError, InputError
from cifar_jax.runs.train import train_seeds
from cifar_jax.studies.table.record import write_failure


def _arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="python -m cifar_jax.studies.table.worker", allow_abbrev=False)
    parser.add_argument("--seeds", required=True, type=lambda text: [int(seed) for seed in text.split(",")])
    parser.add_argument("--workdir", required=True, type=Path, help="holds or will hold seed0, seed1, ...")
    parser.add_argument("--parent", type=int, help="end at once when the process of this id is no longer the parent")
    return parser.parse_known_args(argv)


def _end_with(parent: int) -> None:
    """Watches, beside the training, for the end of `parent`: nobody would go on from a run that goes on by itself."""

    def watch():
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(argv: list[str]) -> int:
    """Trains what the arguments say; gives the exit code."""
    arguments, flags = _arguments(argv)
    if arguments.parent is not None:
        _end_with(arguments.parent)
    folder = arguments.workdir
    try:
        with interruptible() as interrupt:
            _, config = parse(flags)
            results = train_seeds(
                config, {seed: folder / f"seed{seed}" for seed in arguments.seeds}, check_stop=interrupt.check
            )
    except InputError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except Interrupted as interrupted:
        print(interrupted, file=sys.stderr, flush=True)
        os._exit(128 + interrupted.signum)  # as main.py: not before the steps that are under way
    diverged = {seed: str(result) for seed, result in results.items() if isinstance(result, DivergedError)}
    for seed, why in diverged.items():
        write_failure(folder, seed, why)
        print(f"Error: seed {seed}: {why}", file=sys.stderr)
    return 1 if diverged else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
