"""How the cost of this project's training grows with the work: images per second by batch, width, image and data set.

    python -m cifar_jax benchmark curves [--config=FILE] [--batch=100] [--seconds=5] [--png=FILE] [--json=FILE]
        [--batches=50,100,200,500,1000,2000] [--widths=0.25,0.5,1,2] [--sizes=32,48,64,96,128]
        [--data_sizes=1000,5000,20000,50000]

Each curve varies one thing and keeps the others as the config has them; images are noise, which costs what pictures
cost. Then epochs are trained one after another, to see that nothing grows with their number: neither what lives on the
device, nor what is compiled, nor the time.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import monitoring
from ml_collections import ConfigDict

from cifar_jax.command_line import Parser, number, path
from cifar_jax.data.cache import cache_folder
from cifar_jax.data.dataset import Dataset, Split
from cifar_jax.devices.select import describe, keep_compilations, select_devices
from cifar_jax.errors import InputError
from cifar_jax.nn.losses import Metrics
from cifar_jax.runs import phases
from cifar_jax.runs.build import build
from cifar_jax.runs.config import validate
from cifar_jax.runs.config_flags import parse
from cifar_jax.runs.provenance import provenance
from cifar_jax.studies.benchmark import floors, settings
from cifar_jax.studies.benchmark.speed_curves import draw_speed_curves

CLASSES = 100
# What a shared machine's own unrest may amount to.
_SLOWER = 1.25
_EPOCHS, _STEPS = 8, 3  # of the check that nothing grows
_IMAGES = 2000  # of the data set, where it is not what varies


class Point(NamedTuple):
    """One measurement: where on its curve, what differs from the base, and how many images the data set has."""

    x: float
    config: ConfigDict
    images: int


def main(argv: list[str]) -> int:
    """Runs the command; returns 1 where something grows that must not.

    Raises:
      InputError: something in the flags or the config cannot be used.
    """
    parser = Parser("benchmark curves", __doc__)
    settings.add_arguments(parser)
    for name, default, what in (
        ("batches", "50,100,200,500,1000,2000", "batch sizes"),
        ("widths", "0.25,0.5,1,2", "factors of the config's widths"),
        ("sizes", "32,48,64,96,128", "image sizes"),
        ("data_sizes", "1000,5000,20000,50000", "training images"),
    ):
        parser.add_argument(f"--{name}", default=default, help=f"{what}, between commas; '' leaves the curve out")
    parser.add_argument("--seconds", type=number(0), default=5.0, help="for each point, after its first step (5)")
    parser.add_argument(
        "--png", type=path, default="runs/speed_curves.png", metavar="FILE", help="picture of the curves"
    )
    given = parse(parser, argv)
    base = settings.put_short_flags(given)
    curves = points(base, given)
    jax.config.update("jax_enable_x64", base.dtype == "float64")
    print(f"Devices: {describe(select_devices(base.platform))}", flush=True)
    keep_compilations(cache_folder() / "xla")
    origin = provenance()
    record = {"origin": origin, "config": json.loads(json.dumps(base.to_dict())), "curves": {}, "checks": []}
    for name, its_points in curves.items():
        rows = record["curves"][name] = []
        for point in its_points:
            rows.append(measure(point, given.seconds))
            print(f"  {name} {point.x:g}: {rows[-1]['images_per_second']:,.0f} images/s", flush=True)
    record["checks"] = [*epochs_check(base), *data_check(record["curves"].get("data set size", []))]
    for check in record["checks"]:
        print(f"{'ok' if check['ok'] else 'NOT OK'}: {check['what']}: {check['found']}", flush=True)
    if any(record["curves"].values()):
        draw_speed_curves(record["curves"], f"{base.model.name.upper()}, {base.dtype}, {_on(origin)}", given.png)
        print(f"Curves: {given.png}")
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if all(check["ok"] for check in record["checks"]) else 1


def _on(origin: dict[str, Any]) -> str:
    hardware = origin["hardware"]
    return f"{hardware['cores']} CPU cores" if hardware["devices"][0] == "cpu" else hardware["devices"][0]


def points(base: ConfigDict, given: argparse.Namespace) -> dict[str, list[Point]]:
    """The curves that the flags ask for, by the name of what they vary; every config is checked.

    Raises:
      InputError: a value that is no number, or that its config refuses.
    """
    widths = settings.stages(base)

    def scaled(factor):
        return [[max(round(width * factor), 1) for width in stage] for stage in widths]

    varied = (
        ("batch size", "batches", lambda x: {"data.batch_size": int(x)}),
        ("width", "widths", lambda x: {"model.stages": scaled(x)}),
        ("image size", "sizes", lambda x: {"data.image_size": int(x)}),
        ("data set size", "data_sizes", lambda x: {}),
    )
    curves = {
        name: [
            Point(x, changed(base, changes(x)), int(x) if flag == "data_sizes" else _IMAGES)
            for x in _numbers(flag, getattr(given, flag))
        ]
        for name, flag, changes in varied
    }
    return {name: its_points for name, its_points in curves.items() if its_points}


def _numbers(flag: str, text: str) -> list[float]:
    try:
        values = [float(word) for word in text.split(",") if word]
    except ValueError:
        values = [math.nan]
    if not all(value > 0 for value in values):
        raise InputError(f"--{flag} must be numbers above 0 between commas, got {text!r}.")
    return values


def changed(base: ConfigDict, changes: dict[str, Any]) -> ConfigDict:
    """A copy of `base` with other values, checked.

    Raises:
      InputError: as `validate`.
    """
    config = ConfigDict(base.to_dict())
    with config.ignore_type():
        config.update_from_flattened_dict(changes)
    validate(config)
    return config


def noise(images: int) -> Dataset:
    """A data set of so many random images of 100 classes for training, and one for testing."""
    rng = np.random.default_rng(0)
    split = Split(
        rng.integers(0, 256, (images, 32, 32, 3), np.uint8), rng.integers(0, CLASSES, images).astype(np.int32)
    )
    return Dataset("noise", split, Split(*(array[:1] for array in split)), tuple(map(str, range(CLASSES))), (), ())


class Training:
    """Training under way, on so many images, rounded down to whole batches of at least one."""

    def __init__(self, config: ConfigDict, images: int):
        batch = config.data.batch_size
        x = build(config, noise(max(images // batch, 1) * batch))
        self.state, self.draw = x.state, x.draw_epoch
        self.train = phases.compile_training(x, whole=phases.whole_by_default(x))

    def pieces(self, epoch: int) -> Iterator[Metrics]:
        """One epoch, numbered from 0: the metrics of each step, or of the epoch in one piece, as soon as it is done."""
        for state, metrics in self.train(self.state, self.draw(epoch)):
            self.state = state
            yield jax.block_until_ready(metrics)


def measure(point: Point, seconds: float) -> dict[str, Any]:
    """Trains for so long, after a first piece that is not counted, and at least one piece more.

    Returns:
      `x`, `images_per_second` (the median of the pieces), `low`, `high`, `pieces`, and the arithmetic floor's
      `flops_per_image`.
    """
    training = Training(point.config, point.images)
    pieces = (metrics for epoch in range(2**31) for metrics in training.pieces(epoch))
    next(pieces)
    rates, end = [], time.perf_counter() + seconds
    while not rates or time.perf_counter() < end:
        begin = time.perf_counter()
        count = int(np.sum(jax.device_get(next(pieces).count)))
        rates.append(count / (time.perf_counter() - begin))
    config = point.config
    work = floors.training(
        settings.stages(config), image_size=config.data.image_size, classes=CLASSES,
        batch_size=config.data.batch_size, value_bytes=4, moments=2,
    )  # fmt: skip
    return {
        "x": point.x, "images_per_second": statistics.median(rates), "low": min(rates), "high": max(rates),
        "pieces": len(rates), "flops_per_image": work.flops,
    }  # fmt: skip


def epochs_check(base: ConfigDict) -> list[dict[str, Any]]:
    """Trains a few epochs and looks at what each leaves on the device, compiles and takes."""
    compiled = []

    def listen(event, seconds, **context):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    monitoring.register_event_duration_secs_listener(listen)
    training = Training(base, _STEPS * base.data.batch_size)
    live, compilations, seconds = [], [], []
    for epoch in range(_EPOCHS):
        before, times, begin = len(compiled), [], time.perf_counter()
        for _ in training.pieces(epoch):
            times.append(time.perf_counter() - begin)
            begin = time.perf_counter()
        live.append(sum(array.nbytes for array in jax.live_arrays()))
        compilations.append(len(compiled) - before)
        seconds.append(min(times))  # what other work on the machine adds is not what is asked
    monitoring.unregister_event_duration_listener(listen)
    return judge_epochs(live, compilations, seconds)


def judge_epochs(live_bytes: list[int], compilations: list[int], seconds: list[float]) -> list[dict[str, Any]]:
    """Whether anything grew from epoch to epoch; the first is left out.

    Args:
      live_bytes: of all arrays, after each epoch.
      compilations: during each epoch.
      seconds: of the fastest step of each epoch, or of the epoch where it is one piece.
    """
    half = (len(seconds) + 1) // 2
    ratio = min(seconds[half:]) / min(seconds[1:half])
    return [
        {
            "what": "bytes on the device do not grow with the epochs",
            "ok": max(live_bytes[1:]) <= live_bytes[1],
            "found": f"{live_bytes[1]:,} after epoch 2, {live_bytes[-1]:,} after epoch {len(seconds)}",
        },
        {
            "what": "nothing is compiled after the first epoch",
            "ok": sum(compilations[1:]) == 0,
            "found": f"{sum(compilations[1:])} programs in epochs 2 to {len(seconds)}",
        },
        {
            "what": f"steps of later epochs take at most {_SLOWER} times as long",
            "ok": ratio <= _SLOWER,
            "found": f"the fastest of the later half takes {ratio:.2f} times the fastest of the earlier",
        },
    ]


def data_check(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Whether an image costs more in a larger data set; nothing where fewer than two sizes were measured."""
    if len(rows) < 2:
        return []
    small, large = (row for row in (min(rows, key=lambda r: r["x"]), max(rows, key=lambda r: r["x"])))
    ratio = small["images_per_second"] / large["images_per_second"]
    return [
        {
            "what": f"an image of {large['x']:,.0f} costs at most {_SLOWER} times one of {small['x']:,.0f}",
            "ok": ratio <= _SLOWER,
            "found": f"{ratio:.2f} times",
        }
    ]
