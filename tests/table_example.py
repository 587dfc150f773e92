"""A `table.json` made from invented runs, for tests of what is made from it."""

import math
import random

from cifar_jax.studies.table.document import Column, document
from cifar_jax.studies.table.lecture import LECTURE

_ORIGIN = {
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "hardware": {"processor": "A processor", "cores": 2, "memory_gib": 8.0, "devices": ["cpu"]},
    "versions": {"python": "3.11.0", "jax": "0.10.2"},
}


def run(config, seed, *, holdout=0, epochs=30, done=None, failed=None):
    """One run, whose test accuracy climbs towards the lecture's; `done` epochs of it, or all."""
    draw = random.Random(f"{config} {seed} {holdout}")
    top = LECTURE[config].accuracy + draw.gauss(0, 0.4) if config in LECTURE else 90.0
    history = []
    for epoch in range(1, (epochs if done is None else done) + 1):
        accuracy = top * (1 - math.exp(-epoch / 5)) + draw.gauss(0, 0.3)
        row = {
            "epoch": epoch, "lr": 0.001, "train_loss": 4.5 * math.exp(-epoch / 8), "train_accuracy": 3.1 * epoch,
            "test_loss": 1.4 + 3 * math.exp(-epoch / 4), "test_accuracy": accuracy, "seconds": 2.0 + draw.random(),
            "images_per_second": 20000.0,
        }  # fmt: skip
        if holdout:
            row |= {"holdout_loss": row["test_loss"], "holdout_accuracy": accuracy + draw.gauss(0, 0.5)}
        else:
            for rule, lost in (("flax", 0.2), ("lecture", 1.5)):
                row |= {f"test_loss_{rule}": row["test_loss"] + lost / 50}
                row |= {f"test_accuracy_{rule}": accuracy - lost - abs(draw.gauss(0, 0.3))}
        history.append(row)
    folder = f"{config}/holdout{holdout}/seed{seed}" if holdout else f"{config}/seed{seed}"
    status = "failed" if failed else "done" if len(history) == epochs else "unfinished"
    return {
        "config": config, "seed": seed, "holdout": holdout, "folder": folder, "epochs_done": len(history),
        "epochs": epochs, "status": status, "message": failed, "seconds": sum(row["seconds"] for row in history),
        "origin": 0 if history else None, "history": history,
    }  # fmt: skip


def example(seeds=5):
    """All nine configs: most with all their runs, one with a failed and an unfinished one, one with none."""
    columns = [Column(name, "torch", 30, True) for name in LECTURE]
    runs = []
    for name in LECTURE:
        for holdout in (0, 5000):
            for seed in range(seeds):
                if name == "cnn10_64_step":
                    runs.append(run(name, seed, holdout=holdout, done=0))
                elif name == "cnn10_64_adam" and seed == 1:
                    message = "The loss became nan in epoch 8, step 12, at learning rate 0.001."
                    runs.append(run(name, seed, holdout=holdout, done=7, failed=message))
                elif name == "cnn10_64_adam" and seed == 2:
                    runs.append(run(name, seed, holdout=holdout, done=11))
                else:
                    runs.append(run(name, seed, holdout=holdout))
    return document(
        columns, runs, origins=[_ORIGIN],
        settings={
            "configs": [f"configs/{name}.py" for name in LECTURE], "seeds": seeds, "holdout": 5000, "epochs": None,
            "limit_train": 0, "limit_test": 0, "dtype": None, "overrides": [],
        },
        command="python -m cifar_jax table --configs=configs/cnn*_*.py", commit=_ORIGIN["commit"],
        date="2026-01-01T00:00:00+00:00",
    )  # fmt: skip
