"""Decoded arrays, kept in the user's cache folder so that the next start need not decode 60,000 PNGs again."""

import hashlib
import json
import os
import struct
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

_FORMAT = 2


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/cifar_jax`, by default `~/.cache/cifar_jax`.

    Source: XDG Base Directory Specification, which ignores relative paths.

    Raises:
      OSError: the user has no home folder.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return (base if base.is_absolute() else Path.home() / ".cache") / "cifar_jax"
    except RuntimeError as error:
        raise OSError(f"{error} Set XDG_CACHE_HOME.") from error


@contextmanager
def only_process(name: str) -> Iterator[None]:
    """Holds a lock in the cache folder, waiting for a process that has it; a killed process holds none.

    Raises:
      OSError: the cache folder cannot be written.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    cache_folder().mkdir(parents=True, exist_ok=True)
    with open(cache_folder() / f"{name}.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Waiting for another process that prepares {name}", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def fingerprint(folder: Path) -> str:
    """A text that changes when any file in `folder` does (by name, size or time of change)."""
    files = sorted(folder.resolve().iterdir())
    return json.dumps(
        [_FORMAT, str(folder.resolve())] + [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files]
    )


def cache_path(folder: Path) -> Path:
    """Where the arrays of the data set in `folder` are kept: one file for each folder."""
    digest = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return cache_folder() / f"{folder.parent.name}-{digest}.npz"


def read_arrays(folder: Path) -> dict[str, np.ndarray] | None:
    """The arrays kept for `folder`, or None where there are none, they are damaged, or the folder has changed."""
    try:
        # An npz is a zip: every array's checksum is verified as it is read. Its table of contents has none.
        with open(cache_path(folder), "rb") as file, np.load(file, allow_pickle=False) as members:
            arrays = {name: members[name] for name in members.files}
        kept = json.loads(str(arrays.pop("contents")))
        return arrays if kept == [fingerprint(folder), sorted(arrays)] else None
    except Exception:  # a damaged zip raises anything, NotImplementedError and MemoryError too
        return None


def map_arrays(folder: Path, large: tuple[str, ...]) -> dict[str, np.ndarray] | None:
    """As `read_arrays`, but `large` ones stay in the file until they are touched, and no checksum of them is verified.

    For one of many processes, each of which needs a few rows.
    """
    try:
        with open(cache_path(folder), "rb") as file, np.load(file, allow_pickle=False) as members:
            small = {name: members[name] for name in members.files if name not in large}
            mapped = {name: _map_member(file, members.zip.getinfo(f"{name}.npy")) for name in large}
        arrays = small | mapped
        kept = json.loads(str(arrays.pop("contents")))
        return arrays if kept == [fingerprint(folder), sorted(arrays)] else None
    except Exception:
        return None


def _map_member(file: BinaryIO, member: zipfile.ZipInfo) -> np.ndarray:
    """An array of an npz, which stores them as they are. The directory does not say where data begin: a header does."""
    file.seek(member.header_offset + 26)
    name_length, extra_length = struct.unpack("<HH", file.read(4))
    file.seek(member.header_offset + 30 + name_length + extra_length)
    if member.compress_type != zipfile.ZIP_STORED or np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("not as np.savez writes it")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return np.memmap(file, dtype, "r", file.tell(), shape)


def write_arrays(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Keeps arrays for `folder`, whole or not at all. Where that fails, says so once and goes on without."""
    try:
        path = cache_path(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob("*.partial"):  # by a process that was killed
            if time.time() - left.stat().st_mtime > 3600:
                left.unlink(missing_ok=True)
        contents = np.array(json.dumps([fingerprint(folder), sorted(arrays)]))
        # A name of its own, so that two runs that start together do not write into one file.
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".partial")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, contents=contents, **arrays)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            os.unlink(partial)
            raise
    except OSError as error:
        print(f"Decoded images are not kept for the next start: {error}", file=sys.stderr)
