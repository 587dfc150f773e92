"""Measures several settings within a budget of time, the most telling processes first.

    python -m cifar_jax benchmark suite --json=results/benchmark_gpu.json [--budget=520] [--data_dir=FOLDER]
        [--settings=cnn6-32-bfloat16,cnn10-64-float32] [--arms=P2,J1] [--batch=200] [--images=50000] [--seconds=6]

The settings are all of CNN6 and CNN10 at 32x32 and CNN10 at 64x64, in bfloat16 and in float32, unless --settings names
some. Processes go in this order, each kind through all settings: P2 and J1 with nothing compiled before; J1 and P2
again, now with their caches; then the other arms once. What does not fit into the budget is reported by name. After its
first epoch a process trains for --seconds more, in which an arm that goes step by step may end inside an epoch. The
file is written after each process, so that what has been measured outlives an interruption.
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from cifar_jax.command_line import Parser, integer, number, words
from cifar_jax.errors import InputError
from cifar_jax.runs.config_flags import parse
from cifar_jax.studies.benchmark import settings, summary
from cifar_jax.studies.benchmark.compare import (
    DEFAULT_IMAGES,
    PRECISIONS,
    Setting,
    check_arms,
    probe,
    write_json,
)

_SIZES = (("cnn6", 32), ("cnn10", 32), ("cnn10", 64))
SETTINGS = tuple(f"{model}-{size}-{dtype}" for model, size in _SIZES for dtype in ("bfloat16", "float32"))
_RIVALS = ("P2", "J1")
_DEFAULT_BATCH = 200


class Job(NamedTuple):
    """A process to run: an arm in a setting."""

    setting: str
    arm: str


def plan(names: Sequence[str], arms: Sequence[str]) -> list[Job]:
    """What to run, in order: the two rivals A B, then B A, then the others.

    >>> [tuple(job) for job in plan(["s"], ["P0", "P2", "J1"])]
    [('s', 'P2'), ('s', 'J1'), ('s', 'J1'), ('s', 'P2'), ('s', 'P0')]
    """
    rivals = [arm for arm in _RIVALS if arm in arms]
    rounds = (rivals, rivals[::-1], [arm for arm in arms if arm not in rivals])
    return [Job(name, arm) for each in rounds for name in names for arm in each]


def main(argv: list[str]) -> int:
    """Runs the command; returns 1 where an arm trains otherwise than the others.

    Raises:
      InputError: something in the flags, the config or the data cannot be used.
    """
    begin = time.perf_counter()
    parser = Parser("benchmark suite", __doc__)
    settings.add_arguments(parser)
    settings.add_data_arguments(parser)
    parser.add_argument("--settings", type=words, default=list(SETTINGS), help="which, as network-size-type")
    parser.add_argument("--arms", type=words, default=["P0", "P1", "P2", "J0", "J1"], help="which")
    parser.add_argument(
        "--epochs", type=integer(2), default=30, metavar="N", help="epochs of each process at most (30)"
    )
    parser.add_argument("--seconds", type=number(0), default=6.0, help="of each process after its first epoch (6)")
    parser.add_argument("--budget", type=number(1), default=520.0, help="seconds for everything (520)")
    parser.add_argument("--precision", choices=PRECISIONS, default=PRECISIONS[0], help="of float32 products on a GPU")
    given = parse(parser, argv)
    base = given.config
    check_arms(given.arms)
    configs = {name: _config(name, base, given) for name in given.settings}
    device = probe(base.platform)
    images = given.images or DEFAULT_IMAGES[device["platform"]]

    def left():
        return given.budget - (time.perf_counter() - begin)

    def write(records):
        if given.json:
            write_json(given.json, records, device["origin"], None)

    with tempfile.TemporaryDirectory() as folder:
        batch = given.batch or _DEFAULT_BATCH
        stored = settings.store_images(Path(folder), images, batch, given.data_dir)
        running: dict[str, Setting] = {}
        for name, config in configs.items():
            place = Path(folder) / name
            place.mkdir()
            running[name] = Setting(
                config, stored, folder=place, device=device["platform"], epochs=given.epochs,
                precision=given.precision, seconds=given.seconds,
            )  # fmt: skip
        _share_ceilings(running, left)
        for job in plan(list(configs), given.arms):
            setting = running[job.setting]
            if left() <= 0:
                setting.not_run.setdefault(job.arm, f"the budget of {given.budget:g} s was spent.")
                continue
            print(f"  {job.setting}, {job.arm}: {setting.run(job.arm, timeout=left())}", flush=True)
            write([each.record() for each in running.values()])
        records = [setting.record() for setting in running.values()]
    write(records)
    for record in records:
        print(summary.table(record), flush=True)
    print(f"Measured in {time.perf_counter() - begin:.0f} s.", flush=True)
    return 1 if any(record["agreement"] and record["agreement"]["disagree"] for record in records) else 0


def _config(name: str, base: ConfigDict, given: argparse.Namespace) -> ConfigDict:
    if name not in SETTINGS:
        raise InputError(f"--settings must be some of {', '.join(SETTINGS)}, got {name!r}.")
    model, size, dtype = name.split("-")
    for flag in ("model", "size", "dtype"):
        if getattr(given, flag) is not None:
            raise InputError(f"--{flag} is part of --settings in a suite, got {getattr(given, flag)!r}.")
    config = copy.deepcopy(base)
    config.model.name, config.data.image_size, config.dtype = model, int(size), dtype
    config.data.batch_size = given.batch or _DEFAULT_BATCH
    settings.check(config)
    return config


def _share_ceilings(running: dict[str, Setting], left) -> None:
    """Measures the ceilings once for each type, and gives them to all its settings."""
    by_type: dict[str, Setting] = {}
    for setting in running.values():
        dtype = setting.recipe.config["dtype"]
        if dtype not in by_type:
            setting.measure_ceilings(timeout=max(left(), 1))
            by_type[dtype] = setting
        setting.ceilings = by_type[dtype].ceilings
        setting.not_run.update(by_type[dtype].not_run)
