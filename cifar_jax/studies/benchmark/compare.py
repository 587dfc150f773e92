"""Measures all arms side by side; the commands `curves` and `suite` have a --help of their own.

    python -m cifar_jax benchmark [--arms=P0,P1,P1L,P2,J0,J1] [--model=cnn10] [--size=64] [--batch=100]
        [--dtype=bfloat16] [--epochs=3] [--repeats=2] [--images=1000] [--data_dir=FOLDER] [--json=FILE]

| arm | what |
|---|---|
| P0 | the lecture's program in PyTorch: DataLoader, Pillow, `.item()` |
| P1 | PyTorch eager, the data on the device |
| P1L | the same with channels last |
| P2 | the best PyTorch: as P1L, torch.compile(max-autotune), CUDA graphs on a GPU, a fused optimizer |
| J0 | Flax the usual way: stock layers, a jitted step for each batch, fed from the host |
| J1 | this project |

All start from the same weights and see the same images, order and flips, and their losses must agree; if not, the arm
is named and the exit code is 1. Each arm runs `--repeats` times, in turn, A B B A, in a process of its own; its first
epoch, which compiles, is not counted as steady.
"""

import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cifar_jax.command_line import Parser, integer, words
from cifar_jax.errors import InputError
from cifar_jax.runs.config_flags import parse
from cifar_jax.studies.benchmark import floors, runner, settings, start, summary, worker
from cifar_jax.studies.benchmark.recipe import Recipe, write_draws

# Of float32 products on a GPU, which knows a quick way and an exact one.
PRECISIONS = ("tensorfloat32", "highest")
# Where --images says nothing: what a CPU trains in seconds, and all of CIFAR-100.
DEFAULT_IMAGES = {"cpu": 600, "gpu": 50_000}


def main(argv: list[str]) -> int:
    """Runs the command; returns 1 where an arm trains otherwise than the others.

    Raises:
      InputError: something in the flags, the config or the data cannot be used.
    """
    parser = Parser("benchmark", __doc__)
    settings.add_arguments(parser)
    settings.add_data_arguments(parser)
    parser.add_argument("--arms", type=words, default=list(worker.ARMS), help="which, in the order of the first round")
    parser.add_argument("--epochs", type=integer(2), default=3, metavar="N", help="epochs of each process (3)")
    parser.add_argument("--repeats", type=integer(1), default=2, metavar="N", help="processes of each arm (2)")
    parser.add_argument("--precision", choices=PRECISIONS, default=PRECISIONS[0], help="of float32 products on a GPU")
    parser.add_argument("--nostart", dest="start", action="store_false", help="do not measure the start of main.py")
    given = parse(parser, argv)
    config = settings.put_short_flags(given)
    settings.check(config)
    check_arms(given.arms)
    if given.data_dir is None:
        print("No --data_dir: images are drawn shapes, which cost what CIFAR-100's cost.", flush=True)
    device = probe(config.platform)
    record = measure_setting(
        config, given.arms, device=device["platform"], epochs=given.epochs, repeats=given.repeats,
        images=given.images or DEFAULT_IMAGES[device["platform"]], data_dir=given.data_dir, precision=given.precision,
    )  # fmt: skip
    starts = None
    if given.start:
        starts = start.measure_start(["--config=quickstart", f"--config.platform={config.platform}"])
        print(start.sentence(starts), flush=True)
    if given.json:
        write_json(given.json, [record], device["origin"], starts)
    return 1 if record["agreement"] and record["agreement"]["disagree"] else 0


def check_arms(arms: Sequence[str]) -> None:
    """Makes sure that all arms exist, once each.

    Raises:
      InputError: one does not.
    """
    for arm in arms:
        if arm not in worker.ARMS or arms.count(arm) > 1:
            raise InputError(f"--arms must be different ones of {', '.join(worker.ARMS)}, got {','.join(arms)}.")


def probe(platform: str) -> dict[str, Any]:
    """What the arms in JAX run on; asked in another process, so that this one does not hold the device.

    Raises:
      InputError: there is no such platform, or the arms are not written for it.
    """
    asked = Recipe({}, [], 0, 0, None, platform, 0, "", "", "")
    with tempfile.TemporaryDirectory() as folder:
        outcome = runner.run_process(worker.PROBE, asked, caches=Path(folder))
    if outcome.result is None:
        raise InputError(f"platform must name devices that JAX finds here or be auto, got {platform}: {outcome.reason}")
    if outcome.result["platform"] not in DEFAULT_IMAGES:
        raise InputError(f"platform must be cpu or gpu for the benchmark, got {outcome.result['platform']}.")
    return outcome.result


def measure_setting(
    config: ConfigDict,
    arms: Sequence[str],
    *,
    device: str,
    epochs: int,
    repeats: int,
    images: int,
    data_dir: str | None,
    precision: str,
    on_line: Callable[[str], None] = lambda line: print(line, flush=True),
) -> dict[str, Any]:
    """Measures one setting; see `summary.to_record` for what comes out.

    Raises:
      InputError: the data cannot be used.
    """
    with tempfile.TemporaryDirectory() as folder:
        stored = settings.store_images(Path(folder), images, config.data.batch_size, data_dir)
        setting = Setting(config, stored, folder=Path(folder), device=device, epochs=epochs, precision=precision)
        on_line(summary.heading(setting.record()))
        setting.measure_ceilings()
        for number, arm in runner.in_turn(list(arms), repeats):
            on_line(f"  round {number + 1}, {arm}: {setting.run(arm)}")
        record = setting.record()
    on_line(summary.table(record))
    return record


class Setting:
    """One network, size, type and batch, while its arms are being measured.

    folder: for what the processes share, their caches among it.
    seconds: limit of each process after its first epoch.
    """

    def __init__(
        self,
        config: ConfigDict,
        images: settings.Images,
        *,
        folder: Path,
        device: str,
        epochs: int,
        precision: str,
        seconds: float | None = None,
    ):
        stages = settings.stages(config)
        drawn = floors.parameters(stages, images.classes) - 2 * sum(map(sum, stages))
        write_draws(folder, settings.draw(config, images.train, epochs, drawn))
        self.folder, self.images = folder, images
        self.recipe = Recipe(
            config=json.loads(json.dumps(config.to_dict())), stages=stages, classes=images.classes, epochs=epochs,
            seconds=seconds, device=device, threads=len(os.sched_getaffinity(0)), precision=precision,
            images=str(images.folder), draws=str(folder),
        )  # fmt: skip
        self.runs: dict[str, list[dict[str, Any]]] = {}
        self.not_run: dict[str, str] = {}
        self.ceilings: dict[str, dict[str, float]] = {}

    def measure_ceilings(self, timeout: float | None = None) -> None:
        """What the device can do, by each framework."""
        for name in worker.CEILINGS:
            outcome = runner.run_process(name, self.recipe, caches=self.folder / name, timeout=timeout)
            if outcome.result is None:
                self.not_run[name] = outcome.reason
            else:
                self.ceilings[name.removeprefix("ceilings-")] = outcome.result

    def run(self, arm: str, timeout: float | None = None) -> str:
        """Runs an arm once; what came out, in a few words. An arm that failed is not tried again."""
        if arm in self.not_run:
            return f"not run: {self.not_run[arm]}"
        begin = time.perf_counter()
        outcome = runner.run_process(arm, self.recipe, caches=self.folder / arm, timeout=timeout)
        if outcome.result is None:
            self.not_run[arm] = outcome.reason
            return f"not run: {outcome.reason}"
        self.runs.setdefault(arm, []).append(outcome.result)
        steady = summary.summarize(self.runs[arm][-1:])["train"]
        rate = f"{steady['median']:,.0f} images/s" if steady else "no epoch beyond the first"
        return f"{rate}, first step after {outcome.result['first_step']:.1f} s, {time.perf_counter() - begin:.0f} s"

    def record(self) -> dict[str, Any]:
        """What has been measured so far."""
        return summary.to_record(
            self.recipe, self.images, runs=self.runs, not_run=self.not_run,
            ceilings=self.ceilings,
        )  # fmt: skip


def write_json(
    path: Path, records: Sequence[Mapping[str, Any]], origin: dict[str, Any], starts: dict[str, float] | None
) -> None:
    """Writes the records of one or more settings, with what is behind them."""
    arms = [arm for record in records for arm in record["origins"].values()]
    torch = next(({"torch": arm["torch"]} for arm in arms if "torch" in arm), {})
    origin = {
        **origin,
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "versions": {**origin["versions"], **torch},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"origin": origin, "start": starts, "settings": list(records)}, indent=1) + "\n")
