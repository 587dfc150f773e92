"""Runs the groups of a table side by side, each in a process of its own, so that no crash takes others with it."""

import collections
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from cifar_jax.devices.interrupt import Interrupted
from cifar_jax.errors import InputError
from cifar_jax.studies.table.plan import Group
from cifar_jax.studies.table.record import read_failures, unfinished, write_failure

# Seconds between two looks at the processes.
_NAP = 0.2
# Seconds that a process may take to stop in good order: a step at full width on a CPU, twice.
_PATIENCE = 60


class _Worker(NamedTuple):
    group: Group
    seeds: list[int]
    process: subprocess.Popen
    log: BinaryIO
    log_start: int


def train_groups(
    work: Iterable[tuple[Group, Sequence[int]]],
    workdir: Path,
    *,
    parallel: int,
    look: Callable[[], None],
    check_stop: Callable[[], None],
    log: str = "log.txt",
    device: int | None = None,
    most_crashes: int | None = None,
) -> None:
    """Trains groups' runs under the seeds that `work` gives, in its order, `parallel` processes at a time.

    Why a run failed is noted with `record.write_failure`; what a process says is added to a file in its group's folder.
    A process that crashed is taken to have failed at its first run that is not done, and the others are tried again.

    Args:
      work: is asked for more whenever a process may start.
      workdir: the table's folder.
      parallel: processes at a time.
      look: called a few times a second, and after the end of each process.
      check_stop: likewise; may raise to stop everything in good order.
      log: the file's name.
      device: which of the machine's GPUs they may use; None for all that this process may.
      most_crashes: in a row, after which no more work is asked for; None where there is no other process to do it.

    Raises:
      InputError: the first process to end was refused what it needs, such as a device, and nothing was trained. Not
        with `most_crashes`: other processes may fare better.
    """
    environment = _environment(parallel, device)
    work, again, active, ended, crashes = iter(work), collections.deque(), [], 0, 0
    try:
        while True:
            while len(active) < parallel and (piece := again.popleft() if again else next(work, None)):
                active.append(_start(*piece, workdir, log, environment))
            if not active:
                return
            time.sleep(_NAP)
            check_stop()
            for worker in [worker for worker in active if worker.process.poll() is not None]:
                active.remove(worker)
                why, open_seeds = _note_end(worker, workdir)
                if worker.process.returncode == 2 and not ended and most_crashes is None:
                    raise InputError(why)
                ended += 1
                crashes = crashes + 1 if open_seeds else 0
                if crashes == most_crashes:
                    print(f"Error: {why} This process takes no more runs.", file=sys.stderr, flush=True)
                    work = iter(())
                if open_seeds[1:]:
                    again.append((worker.group, open_seeds[1:]))
            look()
    except Interrupted as interrupted:
        _stop(active, interrupted.signum)
        raise
    except BaseException:
        _stop(active, signal.SIGTERM)
        raise


def worker_command(group: Group, seeds: Sequence[int], folder: Path) -> list[str]:
    """The command that trains runs of the group in its `folder`, for as long as this process lives."""
    return [
        sys.executable, "-m", "cifar_jax.studies.table.worker", *group.flags, f"--seeds={','.join(map(str, seeds))}",
        f"--workdir={folder}", f"--parent={os.getpid()}",
    ]  # fmt: skip


def _environment(parallel: int, device: int | None) -> dict[str, str]:
    environment = dict(os.environ)
    if parallel > 1:
        # Each JAX process would take three quarters of a GPU's memory.
        environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 / parallel:.2f}")
    if device is not None:
        visible = environment.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else None
        if names is not None and device >= len(names):
            raise InputError(
                f"CUDA_VISIBLE_DEVICES must name a GPU for each task of a machine, got {visible!r} in task {device}."
            )
        environment["CUDA_VISIBLE_DEVICES"] = str(device) if names is None else names[device]
    return environment


def _start(group: Group, seeds: Sequence[int], workdir: Path, log_name: str, environment: dict[str, str]) -> _Worker:
    folder = workdir / group.folder
    folder.mkdir(parents=True, exist_ok=True)
    log = open(folder / log_name, "ab")  # noqa: SIM115 (until the process has ended)
    log_start = log.seek(0, os.SEEK_END)
    # A session of its own: Ctrl-C reaches this process alone, which passes it on.
    process = subprocess.Popen(
        worker_command(group, seeds, folder), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
        start_new_session=True,
    )  # fmt: skip
    return _Worker(group, seeds, process, log, log_start)


def _note_end(worker: _Worker, workdir: Path) -> tuple[str, list[int]]:
    """Closes the log, notes a crash; gives the process's last words and the seeds left, first the one that crashed."""
    worker.log.close()
    folder, code = workdir / worker.group.folder, worker.process.returncode
    with open(worker.log.name, "rb") as log:
        log.seek(worker.log_start)
        lines = log.read().decode(errors="replace").strip().splitlines()
    why = lines[-1].removeprefix("Error: ") if lines and code >= 0 else f"Ended by {_signal_name(-code)}"
    failures, open_seeds = read_failures(folder), unfinished(worker.group, workdir)
    left = [seed for seed in worker.seeds if seed in open_seeds and seed not in failures]
    if left:
        note = f"{why} (exit code {code}; see {Path(worker.log.name).relative_to(workdir)})"
        write_failure(folder, left[0], note)
    return why, left


def _signal_name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def _stop(workers: Sequence[_Worker], signum: int) -> None:
    for worker in workers:
        worker.process.send_signal(signum)
    end = time.monotonic() + _PATIENCE
    for worker in workers:
        try:
            worker.process.wait(max(0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
        worker.log.close()
