"""Arms in turn, each in a process of its own, so that none profits from what another has loaded, tuned or cached."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cifar_jax.studies.benchmark.recipe import Recipe, write_request


class Outcome(NamedTuple):
    """What became of a process: its result, or in one line why there is none."""

    result: dict[str, Any] | None
    reason: str | None


def in_turn(arms: Sequence[str], rounds: int) -> list[tuple[int, str]]:
    """Rounds and arms, A B B A: what slows down as the machine warms up favours no one.

    >>> in_turn(["A", "B"], 3)
    [(0, 'A'), (0, 'B'), (1, 'B'), (1, 'A'), (2, 'A'), (2, 'B')]
    """
    return [(number, arm) for number in range(rounds) for arm in (arms if number % 2 == 0 else arms[::-1])]


def run_process(
    arm: str,
    recipe: Recipe,
    *,
    caches: Path,
    timeout: float | None = None,
    command: Callable[[Path, Path], list[str]] | None = None,
) -> Outcome:
    """Runs `arm` in a process.

    Args:
      arm: a name that `worker` knows.
      recipe: what to train.
      caches: folder for compiled programs, which outlives the process.
      timeout: seconds after which the process is ended.
      command: takes the files of the request and of the result to what is run; `worker` unless given.
    """
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(caches / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "TRITON_CACHE_DIR": str(caches / "triton"),
    }
    with tempfile.TemporaryDirectory() as folder:
        request, result, log = (Path(folder) / name for name in ("request.json", "result.json", "log"))
        argv = command(request, result) if command else _worker(request, result)
        with open(log, "wb") as output:
            write_request(request, arm, recipe, time.time())
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
            )
            try:
                code = process.wait(timeout)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _end(process)
        if code is None:
            return Outcome(None, f"it was not done within {timeout:.0f} s, and was ended.")
        if code != 0 or not result.is_file():
            return Outcome(None, _reason(code, log.read_text(errors="replace")))
        return Outcome(json.loads(result.read_text()), None)


def _worker(request: Path, result: Path) -> list[str]:
    return [sys.executable, "-m", "cifar_jax.studies.benchmark.worker", str(request), str(result)]


def _end(process: subprocess.Popen) -> None:
    """Ends what is left of a process and of those that it started, which share its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _reason(code: int, log: str) -> str:
    """The last line of an error that says something, in one line."""
    if "No module named 'torch'" in log:
        return "PyTorch is not installed: pip install '.[torch]'."
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line.split(":")[0]]
    said = (errors or lines or ["it said nothing"])[-1]
    return f"it ended with code {code}: {said}"
