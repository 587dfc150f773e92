"""`table.json`: everything that the table, its README section and its report are made from.

    command, commit, date: of the command that wrote it
    hardware, versions: of the newest start of a run, as `cifar_jax.runs.provenance` has them; None before the first
    origins: the distinct {commit, hardware, versions} of all starts, the newest last
    settings: {configs, seeds, holdout, epochs, limit_train, limit_test, dtype, overrides}; None keeps a config's own
    lecture: {config: {network, recipe, accuracy, epoch}}
    cells: {config: ...}, as `cifar_jax.studies.table.cells.cell` makes them
    runs: [{config, seed, holdout, folder, epochs_done, epochs, status, message, seconds, origin, history}]

Accuracies are in percent, times in seconds. `folder` is relative to the file. A run with a `holdout` is a companion: as
many training images were held out. `status` is "done", "unfinished" or "failed", and `message` says why it failed.
`seconds` are those of all epochs so far, `origin` is the place of the run's last start in `origins`, and `history` has
its rows of `metrics.jsonl`.
"""

import json
from collections.abc import Sequence
from typing import NamedTuple

from cifar_jax.studies.table.cells import cell
from cifar_jax.studies.table.lecture import LECTURE


class Column(NamedTuple):
    """What a cell must know of its config; see `cells.cell`."""

    name: str
    rule: str
    epochs: int
    all_images: bool


def document(
    columns: Sequence[Column], runs: Sequence[dict], *, origins: Sequence[dict], settings: dict, **written: str | None
) -> dict:
    """`table.json` as a dict; `written` is the command, the commit and the date."""
    newest = origins[-1] if origins else {"hardware": None, "versions": None}
    return {
        **written,
        "hardware": newest["hardware"],
        "versions": newest["versions"],
        "origins": list(origins),
        "settings": settings,
        "lecture": {name: result._asdict() for name, result in LECTURE.items()},
        "cells": {
            each.name: cell(
                each.name, [run for run in runs if run["config"] == each.name],
                rule=each.rule, epochs=each.epochs, all_images=each.all_images,
            )
            for each in columns
        },
        "runs": list(runs),
    }  # fmt: skip


def dumps(table: dict) -> str:
    """The text of `table.json`, a run in a line; a number that JSON does not know is an error."""

    def text(value):
        return json.dumps(value, allow_nan=False)

    lines = []
    for key, value in table.items():
        if value and isinstance(value, dict):
            inside = ",\n  ".join(f"{text(name)}: {text(each)}" for name, each in value.items())
            lines.append(f" {text(key)}: {{\n  {inside}\n }}")
        elif value and isinstance(value, list):
            inside = ",\n  ".join(text(each) for each in value)
            lines.append(f" {text(key)}: [\n  {inside}\n ]")
        else:
            lines.append(f" {text(key)}: {text(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"
