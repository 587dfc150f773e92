"""Collects a run's figures, with what is behind them, into one JSON file.

python -m cifar_jax record runs/cnn6_adam results/cnn6_adam.json
"""

import json
from pathlib import Path

from cifar_jax.command_line import Parser, path
from cifar_jax.errors import InputError
from cifar_jax.files import write_whole


def record(workdir: Path) -> dict:
    """The config, the metrics of each epoch and the origin of each start of the run in `workdir`."""

    def rows(name):
        return [json.loads(line) for line in (workdir / name).read_text().splitlines()]

    metrics = rows("metrics.jsonl")
    best = max(metrics, key=lambda row: row["test_accuracy"])
    return {
        "config": json.loads((workdir / "config.json").read_text()),
        "starts": rows("starts.jsonl"),
        "epochs": len(metrics),
        "maximum_test_accuracy": best["test_accuracy"],
        "maximum_at_epoch": best["epoch"],
        "final_test_accuracy": metrics[-1]["test_accuracy"],
        "metrics": metrics,
    }


def main(argv: list[str]) -> None:
    """Writes the record of a run.

    Raises:
      InputError: there is no such run, or no such place.
    """
    parser = Parser("record", __doc__)
    parser.add_argument("run", type=path, metavar="RUN", help="the folder of a run")
    parser.add_argument("out", type=path, metavar="OUT.json", help="a file in a folder that exists")
    arguments = parser.parse_args(argv)
    if not (arguments.run / "metrics.jsonl").is_file():
        raise InputError(f"RUN must be the folder of a run with metrics.jsonl, got {str(arguments.run)!r}.")
    if not arguments.out.absolute().parent.is_dir():
        raise InputError(f"OUT.json must be a file in a folder that exists, got {str(arguments.out)!r}.")
    write_whole(arguments.out, json.dumps(record(arguments.run), indent=1) + "\n")
