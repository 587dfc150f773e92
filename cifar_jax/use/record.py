"""Collects a run's figures, with what is behind them, into one JSON file.

python -m cifar_jax record runs/cnn6_adam results/cnn6_adam.json
"""

import json
import sys
from pathlib import Path

from cifar_jax.commands import exit_code, help_wanted
from cifar_jax.errors import InputError


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
    """Writes the record of the run `argv[0]` to `argv[1]`.

    Raises:
      InputError: there is no such run, or no such place.
    """
    if help_wanted(argv, __doc__):
        return
    if (
        len(argv) != 2
        or not (Path(argv[0]) / "metrics.jsonl").is_file()
        or not Path(argv[1]).absolute().parent.is_dir()
    ):
        raise InputError(f"RUN OUT.json must be a run's folder and a file in one that exists, got {' '.join(argv)!r}.")
    Path(argv[1]).write_text(json.dumps(record(Path(argv[0])), indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(exit_code(main, sys.argv[1:]))
