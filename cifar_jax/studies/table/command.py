"""Trains every config under every seed, and writes the lecture's table from the runs.

    python -m cifar_jax table --configs=configs/cnn*_*.py --seeds=5 --workdir=runs/table

Runs that are done are skipped, others go on where they stopped, so that the work may be split over any number of calls.
WORKDIR/CONFIG/seedN is the run of one config and seed, as main.py would leave it, and WORKDIR/CONFIG/holdoutM/seedN its
companion, for which M training images are held out to choose the epoch by. After every run that is done
WORKDIR/table.json (see `cifar_jax.studies.table.document`) and table.md are written anew, and at the end the report.

The processes of a job, started as main.py's are, share the runs out: each takes the next one whenever it is free.
What a lost process was at is taken up by the next call, of however many processes.

Exit codes: 0 all runs are done, 1 some failed (they are listed, and tried again by the next call), 2 wrong input,
3 a process of the job was lost (134 if it was the first), 130 Ctrl-C, 143 SIGTERM.
"""

import argparse
import contextlib
import datetime
import fcntl
import secrets
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from cifar_jax.command_line import Parser, add_job, integer, path
from cifar_jax.devices.cluster import find_place
from cifar_jax.devices.distributed import Job, joined
from cifar_jax.devices.interrupt import Interrupted, interruptible
from cifar_jax.errors import InputError
from cifar_jax.files import write_whole
from cifar_jax.runs.config_flags import split_overrides
from cifar_jax.runs.provenance import command, commit
from cifar_jax.studies.table.document import dumps
from cifar_jax.studies.table.launch import train_groups
from cifar_jax.studies.table.markdown import markdown
from cifar_jax.studies.table.plan import Group, check, find_configs, plan
from cifar_jax.studies.table.record import forget_failures, read_table, unfinished
from cifar_jax.studies.table.report.write import write_report
from cifar_jax.studies.table.watch import Watch

# Flags that stand for a key of the config.
_KEYS = {
    "epochs": "train.epochs", "limit_train": "data.limit_train", "limit_test": "data.limit_test", "dtype": "dtype",
    "data_dir": "data.dir",
}  # fmt: skip
# In a row, such as on a broken GPU, after which a process of a job leaves what is left to the others.
_CRASHES = 2


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    """The flags, and the keys that `--config.KEY=VALUE` or a flag of its own changes."""
    parser = Parser("table", __doc__)
    parser.add_argument(
        "--configs", default=["cnn*_*"], nargs="+",
        help="config files or names of those that come with the package: patterns, or lists with commas (cnn*_*)",
    )  # fmt: skip
    parser.add_argument("--seeds", default=5, type=integer(1), metavar="N", help="the seeds 0 to N-1 (5)")
    parser.add_argument("--workdir", default="runs/table", type=path, metavar="DIR", help="for all runs (runs/table)")
    parser.add_argument(
        "--holdout", type=integer(0), metavar="M", help="training images that companions hold out (5000); 0 for none"
    )
    parser.add_argument("--parallel", default=1, type=integer(1), metavar="N", help="configs side by side (1)")
    add_job(parser)
    for flag, key in _KEYS.items():
        parser.add_argument(f"--{flag}", metavar="VALUE", help=f"the same as --config.{key}=VALUE")
    words, overrides = split_overrides(argv)
    arguments = parser.parse_args(words)
    arguments.configs = ",".join(arguments.configs)  # of a pattern that the shell has expanded
    named = [(key, getattr(arguments, flag)) for flag, key in _KEYS.items()]
    return arguments, [(key, text) for key, text in named if text is not None] + overrides


def _settings(arguments: argparse.Namespace, overrides: Sequence[tuple[str, str]], groups: Sequence[Group]) -> dict:
    """What `table.json` says of the flags; they have been found right by now."""
    return {
        "configs": [str(path) for path in find_configs(arguments.configs)],
        "seeds": arguments.seeds,
        "holdout": max(group.holdout for group in groups),
        "epochs": None if arguments.epochs is None else int(arguments.epochs),
        "limit_train": int(arguments.limit_train or 0),
        "limit_test": int(arguments.limit_test or 0),
        "dtype": arguments.dtype,
        "overrides": [f"--config.{key}={text}" for key, text in overrides if key not in _KEYS.values()],
    }


@contextlib.contextmanager
def _only_command(workdir: Path) -> Iterator[None]:
    """Keeps a second command from training the same runs at the same time."""
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / "lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"--workdir must not be in use by another such command, got {str(workdir)!r}.") from error
        lock.truncate(0)
        lock.write(secrets.token_hex(8))
        lock.flush()
        yield


def _agree_on_work(
    groups: Sequence[Group], workdir: Path, settings: dict, lock: contextlib.ExitStack, job: Job | None
) -> list[tuple[Group, list[int]]]:
    """The groups with their runs that are not done, found right, and the same in all processes of a job.

    The first process holds the folder's lock until `lock` is closed.
    """
    together = contextlib.nullcontext if job is None else job.agreement
    first = job is None or job.process_id == 0
    with together({"The table's settings": settings}):
        check(groups, workdir)
        if first:
            lock.enter_context(_only_command(workdir))
    work = [(group, seeds) for group in groups if (seeds := unfinished(group, workdir))]
    left = [str(group.run_folder(seed)) for group, seeds in work for seed in seeds]
    mark = (workdir / "lock").read_text() if (workdir / "lock").exists() else None
    with together({"--workdir (by the mark in its file 'lock')": mark, "The runs left to do in --workdir": left}):
        if first:
            for group, _ in work:
                forget_failures(workdir / group.folder)
    return work


def _in_turn(work: Sequence[tuple[Group, Sequence[int]]], job: Job) -> Iterator[tuple[Group, Sequence[int]]]:
    """The runs that this process of a job takes: one by one, so that all have something to do up to the end."""
    runs = [(group, [seed]) for group, seeds in work for seed in seeds]
    while (turn := job.next_turn()) < len(runs):
        yield runs[turn]


def main(argv: list[str]) -> int:
    """Trains and writes what the arguments say; gives the exit code.

    Raises:
      InputError: something cannot be used; nothing has been trained by then.
      Interrupted: as the signal asked.
    """
    arguments, overrides = _parse(argv)
    workdir = arguments.workdir
    place = find_place(arguments.coordinator, arguments.processes, arguments.process_id)
    first = place is None or place.process_id == 0
    groups = plan(find_configs(arguments.configs), overrides, seeds=arguments.seeds, holdout=arguments.holdout)
    origin = {"command": command(), "commit": commit()}
    settings = _settings(arguments, overrides, groups)

    def write() -> dict:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        table = read_table(groups, workdir, settings=settings, date=now, **origin)
        if first:
            write_whole(workdir / "table.json", dumps(table))
            write_whole(workdir / "table.md", markdown(table) + "\n")
        return table

    with interruptible() as interrupt, contextlib.ExitStack() as lock:
        with joined(place, interrupt) as job:
            work = _agree_on_work(groups, workdir, settings, lock, job)
            watch = Watch(groups, workdir, on_done=write)
            look = watch.look if first else lambda: None
            print(f"{watch.done()}", flush=True)
            try:
                train_groups(
                    work if job is None else _in_turn(work, job), workdir, parallel=arguments.parallel, look=look,
                    check_stop=interrupt.check if job is None else job.check_stop,
                    log="log.txt" if job is None else f"log{job.process_id}.txt", device=place and place.device,
                    most_crashes=None if job is None else _CRASHES,
                )  # fmt: skip
                if job is not None:
                    job.wait_for_others(look)
            except Interrupted as interrupted:
                watch.look()
                write()
                raise Interrupted(
                    interrupted.signum, f"Stopped; {watch.done()} in {workdir}. The same command goes on from there."
                ) from None
            table = write()
            print(f"{watch.done()}; results in {workdir}", flush=True)
        interrupt.check()
        # Not within the job, whose processes JAX would want to join their devices.
        if first and any(run["status"] == "done" for run in table["runs"]):
            try:
                write_report(table, workdir, workdir / "report.html")
            except InputError as error:  # what draws is not installed; the table stands without it
                print(f"No report was written: {error}", file=sys.stderr, flush=True)
    failed = [run for run in table["runs"] if run["status"] != "done"]
    for run in failed if first else ():
        print(
            f"Failed: {run['folder']} after epoch {run['epochs_done']}: {run['message'] or 'left undone'}",
            file=sys.stderr,
        )
    return 1 if failed else 0
