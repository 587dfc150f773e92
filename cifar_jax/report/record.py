"""Collects a run's figures, with what is behind them, into one JSON file.

python -m cifar_jax.report.record runs/cnn6_adam results/cnn6_adam.json
"""

import json
import sys
from pathlib import Path


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
    """Writes the record of the run `argv[1]` to `argv[2]`."""
    if len(argv) != 3 or not (Path(argv[1]) / "metrics.jsonl").is_file():
        sys.exit("usage: python -m cifar_jax.report.record RUN OUT.json, where RUN is the folder of a run")
    Path(argv[2]).write_text(json.dumps(record(Path(argv[1])), indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv)
