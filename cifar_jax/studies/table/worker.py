"""Trains one config under several seeds, each in a folder of its own, through one compilation.

    python -m cifar_jax.studies.table.worker --config=configs/cnn6_adam.py --seeds=0,1 --workdir=runs/table/cnn6_adam

This is the process that `python -m cifar_jax table` starts for each group of runs. A run that diverges is noted in
WORKDIR/failures, and the others go on. Exit codes are those of main.py: 1 where a run diverged.
"""

import os
import sys
import threading
import time
from pathlib import Path

from cifar_jax.command_line import Parser, end, exit_code
from cifar_jax.devices.interrupt import interruptible
from cifar_jax.errors import DivergedError
from cifar_jax.runs.config_flags import add_config, parse, required_config
from cifar_jax.runs.train import train_seeds
from cifar_jax.studies.table.record import write_failure


def _end_with(parent: int) -> None:
    """Watches, beside the training, for the end of `parent`: nobody would go on from a run that goes on by itself."""

    def watch():
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(argv: list[str]) -> int:
    """Trains what the arguments say; gives the exit code."""
    parser = Parser("table worker", __doc__)
    add_config(parser, default=None)
    parser.add_argument("--seeds", required=True, type=lambda text: [int(seed) for seed in text.split(",")])
    parser.add_argument("--workdir", required=True, type=Path, help="holds or will hold seed0, seed1, ...")
    parser.add_argument("--parent", type=int, help="end at once when the process of this id is no longer the parent")
    arguments = parse(parser, argv)
    if arguments.parent is not None:
        _end_with(arguments.parent)
    config, folder = required_config(arguments), arguments.workdir
    with interruptible() as interrupt:
        results = train_seeds(
            config, {seed: folder / f"seed{seed}" for seed in arguments.seeds}, check_stop=interrupt.check
        )
    diverged = {seed: str(result) for seed, result in results.items() if isinstance(result, DivergedError)}
    for seed, why in diverged.items():
        write_failure(folder, seed, why)
        print(f"Error: seed {seed}: {why}", file=sys.stderr)
    return 1 if diverged else 0


if __name__ == "__main__":
    end(exit_code(main, sys.argv[1:]))
