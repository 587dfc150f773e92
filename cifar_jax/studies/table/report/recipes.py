"""The configs of a `table.json` as people name them, and their runs by epoch."""

from collections.abc import Sequence
from typing import NamedTuple

from cifar_jax.studies.table.cells import statistic

PHASES = ("test", "train")
# Between a network and the name of a recipe.
SEPARATOR = " · "


class Recipe(NamedTuple):
    """A config of the table.

    config: its name.
    network: the heading that it shares with others.
    name: within that heading.
    """

    config: str
    network: str
    name: str

    @property
    def title(self) -> str:
        """In full."""
        return f"{self.network}{SEPARATOR}{self.name}" if self.network else self.name


def recipes(table: dict) -> list[Recipe]:
    """The configs of the table in its order; those that are none of the lecture's go by their own name."""
    return [
        Recipe(config, cell["network"] or "", cell["recipe"] or config) for config, cell in table["cells"].items()
    ]  # fmt: skip


def main_runs(table: dict, config: str) -> list[dict]:
    """The runs of `config` on all training images, those that are done or, where none is, those that got somewhere."""
    runs = [run for run in table["runs"] if run["config"] == config and not run["holdout"] and run["history"]]
    return [run for run in runs if run["status"] == "done"] or runs


def curve(runs: Sequence[dict], key: str) -> list[tuple[int, dict]]:
    """The statistic over `runs` of what `key` is in each epoch, for as many epochs as all of them have."""
    histories = [run["history"] for run in runs]
    # Rows of a run that came from a checkpoint of PyTorch do not start at 1.
    values = [{row["epoch"]: row[key] for row in history} for history in histories]
    epochs = sorted(set.intersection(*(set(each) for each in values))) if values else []
    return [(epoch, statistic(each[epoch] for each in values)) for epoch in epochs]
