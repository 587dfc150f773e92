"""One arm, or one framework's ceilings, in this process: python -m cifar_jax.studies.benchmark.worker REQUEST RESULT

Each arm's libraries are imported only where it is asked for, since how long that takes is part of its start.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cifar_jax.studies.benchmark.arm import Arm
from cifar_jax.studies.benchmark.recipe import Recipe, read_request

CEILINGS = ("ceilings-jax", "ceilings-torch")
PROBE = "probe"


def _torch(**options) -> Callable[[Recipe], Arm]:
    def create(recipe):
        from cifar_jax.studies.benchmark import torch_arms

        return torch_arms.OnDevice(recipe, **options)

    return create


def _lecture(recipe: Recipe) -> Arm:
    from cifar_jax.studies.benchmark import torch_arms

    return torch_arms.LectureProgram(recipe)


def _stock(recipe: Recipe) -> Arm:
    from cifar_jax.studies.benchmark import jax_arms

    return jax_arms.StockFlax(recipe)


def _ours(recipe: Recipe) -> Arm:
    from cifar_jax.studies.benchmark import jax_arms

    return jax_arms.ThisProject(recipe)


ARMS: dict[str, Callable[[Recipe], Arm]] = {
    "P0": _lecture,
    "P1": _torch(channels_last=False, compiled=False),
    "P1L": _torch(channels_last=True, compiled=False),
    "P2": _torch(channels_last=True, compiled=True),
    "J0": _stock,
    "J1": _ours,
}


def measure(create: Callable[[Recipe], Arm], recipe: Recipe, started: float) -> dict:
    """Trains and evaluates by turns, and times each.

    Args:
      create: makes the arm.
      recipe: what to train, and for how long.
      started: when this process was started, by `time.time()`.

    Returns:
      first_step: seconds from there to the end of the first step of training.
      first_epoch: seconds from there to the end of the first epoch with its evaluation.
      build: seconds that making the arm took, with what it compiles ahead.
      epochs: of each, `train_seconds`, `train_images`, `losses` of the steps, `whole` (False where it was cut short),
        `test_seconds`, `test_images`, `test_loss` and `test_accuracy`.
      peak_host_memory, peak_device_memory: bytes; the second None on the CPU.
      origin: versions and device.
    """
    first_step = []
    begin = time.perf_counter()
    arm = create(recipe)
    build, rows, first_epoch, limit = time.perf_counter() - begin, [], None, None

    def expired():
        return limit is not None and time.perf_counter() > limit

    for epoch in range(recipe.epochs):
        if epoch > 1 and expired():
            break
        arm.draw(epoch)
        begin = time.perf_counter()
        trained = arm.train(epoch, lambda: first_step or first_step.append(time.time() - started), expired)
        middle = time.perf_counter()
        evaluated = arm.evaluate()
        end = time.perf_counter()
        rows.append(
            {
                "train_seconds": middle - begin,
                "train_images": trained.images,
                "losses": trained.losses.astype(float).tolist(),
                "whole": trained.whole,
                "test_seconds": end - middle,
                "test_images": evaluated.images,
                "test_loss": evaluated.loss,
                "test_accuracy": evaluated.accuracy,
            }
        )
        if epoch == 0:
            first_epoch = time.time() - started
            limit = None if recipe.seconds is None else end + recipe.seconds
        if not trained.whole:
            break
    return {
        "first_step": first_step[0],
        "first_epoch": first_epoch,
        "build": build,
        "epochs": rows,
        "peak_host_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,  # Linux counts in KiB
        "peak_device_memory": arm.peak_device_memory(),
        "origin": arm.origin(),
    }


def measure_ceilings(framework: str, recipe: Recipe) -> dict:
    """What the device can do, by one framework: a large product, a large copy, the best of several of each.

    On a GPU 16384 x 16384 and 4 GiB, on the CPU 2048 x 2048 and 256 MiB: beyond any cache, and milliseconds long.
    """
    sizes = (16384, 2**32) if recipe.device == "gpu" else (2048, 2**28)

    def time_best(function):
        function()
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            function()
            times.append(time.perf_counter() - begin)
        return min(times)

    if framework == "torch":
        from cifar_jax.studies.benchmark.torch_arms import measure_ceilings as by_framework
    else:
        from cifar_jax.studies.benchmark.jax_arms import measure_ceilings as by_framework
    return by_framework(recipe, time_best, sizes)


def probe(platform: str) -> dict:
    """What JAX runs on where the config's platform is `platform`: `platform`, `device` and `origin`."""
    from cifar_jax.devices.select import select_devices
    from cifar_jax.runs.provenance import provenance

    devices = select_devices(platform)
    return {"platform": devices[0].platform, "device": devices[0].device_kind, "origin": provenance()}


def main(argv: list[str]) -> None:
    """Does what the file `argv[1]` asks for, and writes what came out to `argv[2]`."""
    name, recipe, started = read_request(Path(argv[1]))
    if name == PROBE:
        result = probe(recipe.device)
    elif name in CEILINGS:
        result = measure_ceilings(name.removeprefix("ceilings-"), recipe)
    else:
        result = measure(ARMS[name], recipe, started)
    Path(argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv)
