"""Which runs a table is made of, and whether they can be made: everything is refused before anything is trained."""

import glob
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from cifar_jax.data import load_dataset
from cifar_jax.data.dataset import hold_out, take
from cifar_jax.errors import InputError
from cifar_jax.files import read_rows
from cifar_jax.nn.batch_norm import RULES
from cifar_jax.runs.config import validate, with_seed
from cifar_jax.runs.config_file import PRESETS, load_config
from cifar_jax.runs.workdir import check_workdir
from cifar_jax.studies.table.lecture import LECTURE

# Of the 50,000 training images.
_HOLDOUT = 5000
# Keys that the table chooses for each run, and how.
_OURS = {
    "seed": "by --seeds",
    "train.seeds": "by --seeds",
    "data.holdout": "by --holdout",
    "norm.compare": "it compares all rules",
}


class Group(NamedTuple):
    """Runs of one config that differ in their seeds alone, and so share a compilation.

    name: of the config; its file's name without the ending.
    flags: the config, as main.py takes it on its command line.
    config: the same; its seed is any.
    holdout: training images held out; 0 unless these are companions.
    folder: of the group, relative to the table's.
    """

    name: str
    flags: tuple[str, ...]
    config: ConfigDict
    holdout: int
    folder: Path
    seeds: int

    def run_folder(self, seed: int) -> Path:
        """Of one run, relative to the table's."""
        return self.folder / f"seed{seed}"

    def seeded(self, seed: int) -> ConfigDict:
        """The config of one run."""
        return with_seed(self.config, seed)


def find_configs(patterns: str) -> list[Path]:
    """The config files that `patterns` names, separated by commas, `*` and `?` among them; in the lecture's order.

    Raises:
      InputError: a pattern matches nothing, or two files have the same name.
    """
    paths = []
    for pattern in patterns.split(","):
        found = [Path(path) for path in sorted(glob.glob(pattern, recursive=True)) if Path(path).is_file()]
        # Of configs that come with the package, the names will do.
        found = found or sorted(path for path in PRESETS.glob(f"{pattern}.py") if "/" not in pattern)
        if not found:
            raise InputError(
                f"--configs must name config files, such as configs/cnn*_*.py or a list with commas, got {pattern!r}, "
                "which matches none."
            )
        paths += [path for path in found if path not in paths]
    names = [path.stem for path in paths]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"--configs must name files of different names, got {twice}.py twice.")
    order = list(LECTURE)
    return sorted(paths, key=lambda path: order.index(path.stem) if path.stem in order else len(order))


def plan(
    paths: Sequence[Path], overrides: Sequence[tuple[str, str]], *, seeds: int, holdout: int | None
) -> list[Group]:
    """The groups of runs of the config files: first those of the table's main columns, then their companions.

    Args:
      paths: config files.
      overrides: keys and values as texts, for all of them.
      seeds: how many; they count from 0.
      holdout: training images that the companions hold out; 0 makes none, and None takes 5,000, or a tenth where
        the config limits the training images.

    Raises:
      InputError: a config cannot be read or is wrong.
    """
    for key, text in overrides:
        if key in _OURS:
            raise InputError(f"config.{key} is the table's to choose ({_OURS[key]}), got --config.{key}={text}.")
    main, companions = [], []
    for path in paths:
        config = load_config(str(path), overrides)
        validate(config)
        others = tuple(rule for rule in RULES if rule != config.norm.rule)
        main.append(_group(path, [*overrides, ("norm.compare", repr(others))], 0, Path(path.stem), seeds))
        limit = config.data.limit_train
        held_out = holdout if holdout is not None else limit // 10 if limit else _HOLDOUT
        if held_out:
            parts = [*overrides, ("data.holdout", str(held_out))]
            companions.append(_group(path, parts, held_out, Path(path.stem) / f"holdout{held_out}", seeds))
    return main + companions


def _group(path: Path, overrides: Sequence[tuple[str, str]], holdout: int, folder: Path, seeds: int) -> Group:
    config = load_config(str(path), overrides)
    validate(config)
    flags = (f"--config={path}", *(f"--config.{key}={text}" for key, text in overrides))
    return Group(path.stem, flags, config, holdout, folder, seeds)


def check(groups: Sequence[Group], workdir: Path) -> None:
    """Makes sure that every run may start or go on in its folder under `workdir`, and that its data are at hand.

    Downloads and decodes what has not been; writes nothing else, and starts no device.

    Raises:
      InputError: the first thing that is wrong.
    """
    for group, seed in _runs(groups):
        folder = workdir / group.run_folder(seed)
        check_workdir(folder, group.seeded(seed))
        done = len(read_rows(folder / "metrics.jsonl"))
        if done > group.config.train.epochs:
            raise InputError(
                f"train.epochs must be at least {done}, the epochs that the run in {str(folder)!r} has, got "
                f"{group.config.train.epochs}."
            )
    loaded = {}
    for group in groups:
        data = group.config.data
        if (data.name, data.dir) not in loaded:
            loaded = {(data.name, data.dir): load_dataset(data.name, data.dir)}  # one at a time
        hold_out(take(loaded[data.name, data.dir], data.limit_train, data.limit_test), data.holdout)


def _runs(groups: Sequence[Group]) -> Iterator[tuple[Group, int]]:
    return itertools.chain.from_iterable(((group, seed) for seed in range(group.seeds)) for group in groups)
