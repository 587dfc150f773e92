"""Decoded arrays, kept in the user's cache folder so that the next start need not decode 60,000 PNGs again."""

import hashlib
import json
import os
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

_FORMAT = 1


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/cifar_jax`, by default `~/.cache/cifar_jax`.

    Source: XDG Base Directory Specification, which ignores relative paths.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "cifar_jax"


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
        # An npz is a zip: every array's checksum is verified as it is read.
        with np.load(cache_path(folder), allow_pickle=False) as file:
            if str(file["fingerprint"]) != fingerprint(folder):
                return None
            return {name: file[name] for name in file.files if name != "fingerprint"}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def write_arrays(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Keeps arrays for `folder`, whole or not at all. Where that fails, says so once and goes on without."""
    path = cache_path(folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own, so that two runs that start together do not write into one file.
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".partial")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, fingerprint=np.array(fingerprint(folder)), **arrays)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            os.unlink(partial)
            raise
    except OSError as error:
        print(f"Decoded images are not kept for the next start: {error}", file=sys.stderr)
