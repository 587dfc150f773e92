"""A run's folder: what is written into it, and whether a run may start there."""

import json
import sys
import tempfile
import time
from pathlib import Path

import ml_collections

from cifar_jax.errors import InputError
from cifar_jax.files import write_whole
from cifar_jax.runs.config import KEYS, first_difference, flatten, shown
from cifar_jax.runs.curves import draw_curves
from cifar_jax.runs.lock import LOCK
from cifar_jax.runs.provenance import provenance


def check_workdir(workdir: Path, config: ml_collections.ConfigDict, *, read_only: bool = False) -> None:
    """Makes sure that a run of `config` may start or go on in `workdir`, or be read, and writes nothing.

    Raises:
      InputError: it is a file, it cannot be written to, it holds another config's run, or something that is no run.
    """
    existing = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise InputError(f"--workdir must be a folder, got {str(workdir)!r}, where {existing} is a file.")
    if not read_only:
        try:
            # Asking for permissions is not enough: root has them all, on a read-only file system too.
            with tempfile.TemporaryFile(dir=existing):
                pass
        except OSError as error:
            raise InputError(
                f"--workdir must be a folder that can be written to, got {str(workdir)!r}: {error.strerror}."
            ) from error
    # A run that was killed in its first instants leaves the lock alone.
    if existing != workdir or all(path.name == LOCK for path in workdir.iterdir()):
        return
    if difference := first_difference(config, flatten(read_config(workdir))):
        key, here, there = difference
        raise InputError(
            f"--workdir must be new or hold a run of this config, got {str(workdir)!r}, whose run has "
            f"{key}={there!r} where this one has {here!r}."
        )


def read_config(workdir: Path) -> ml_collections.ConfigDict:
    """The saved config of the run in `workdir`, with every key there is today.

    Raises:
      InputError: there is none, or it cannot be read.
    """
    path = workdir / "config.json"
    try:
        config = ml_collections.ConfigDict(json.loads(path.read_text()))
        flat = flatten(config)
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"--workdir must be a new or empty folder or the folder of a run, got {str(workdir)!r}, "
            f"which has no readable config.json."
        ) from error
    # What a run meant that is older than a key is the key's default.
    for name, key in KEYS.items():
        section, _, last = name.rpartition(".")
        if section and section not in config:
            config[section] = ml_collections.ConfigDict()
        if section and not isinstance(config[section], ml_collections.ConfigDict):
            raise InputError(f"{path} must be as the run wrote it: {section} is {shown(config[section])}.")
        if name not in flat:
            (config[section] if section else config)[last] = key.default
    return config


def write_config(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Makes `workdir` the folder of a run of `config`."""
    workdir.mkdir(parents=True, exist_ok=True)
    write_whole(workdir / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")


class RunLog:
    """Writes what a run leaves for people and programs to read.

    `history` has a row of metrics for each of the `epochs_done` that was measured here.
    """

    def __init__(self, workdir: Path, config: ml_collections.ConfigDict, history: list[dict], *, epochs_done: int):
        # Not at the top: it takes a second that a refused run should not wait for.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        write_config(workdir, config)
        self._workdir = workdir
        self._history = list(history)
        # The checkpoint's history decides: a run killed between the two files would have a row too many here.
        write_whole(workdir / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in history))
        with open(workdir / "starts.jsonl", "a") as file:
            file.write(json.dumps({**provenance(), "epochs_done": epochs_done}) + "\n")
        self._events = EventFileWriter(str(workdir / "tensorboard"))
        # TensorBoard drops what earlier starts recorded from this epoch on.
        start = SessionLog(status=SessionLog.START)
        self._events.add_event(Event(wall_time=time.time(), step=epochs_done + 1, session_log=start))

    def record(self, row: dict) -> None:
        """Records one epoch's metrics."""
        self._history.append(row)
        with open(self._workdir / "metrics.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
        self._events.add_event(_event(row))
        self._events.flush()

    def draw(self) -> None:
        """Draws the curves anew. A failure is said, and the run goes on: its numbers lie in metrics.jsonl."""
        try:
            draw_curves(self._history, self._workdir.name, self._workdir / "curves.png")
        except Exception as error:  # fonts, caches and settings of Matplotlib may fail in any way
            print(f"curves.png was not drawn: {type(error).__name__}: {error}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Closes the event file."""
        self._events.close()


class NoLog:
    """`RunLog` of a process that leaves the writing to another."""

    def record(self, row: dict) -> None:
        """Does nothing."""

    def draw(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def _event(row: dict):
    """One epoch's metrics as a TensorBoard event."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    values = []
    for key, value in row.items():
        if key != "epoch":
            phase, _, quantity = key.partition("_")
            tag = f"{quantity}/{phase}" if phase in ("train", "test", "holdout") else key
            values.append(Summary.Value(tag=tag, simple_value=value))
    return Event(wall_time=time.time(), step=row["epoch"], summary=Summary(value=values))
