"""One process trains in a folder at a time; a second one is refused, and told which one is there."""

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from cifar_jax.errors import InputError

LOCK = ".lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds `folder/.lock` while the block runs. It dies with the process, however that ends.

    The lock is `flock`'s, which also holds between machines that share the folder over NFS (since Linux 2.6.12). Where
    the file system or the operating system has no such lock, the block runs without.

    Raises:
      InputError: another process holds it; the message has its machine and its id.
    """
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        yield
        return
    with open(folder / LOCK, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"--workdir must not be in use, got {str(folder)!r}, in which {_holder(folder)} trains."
            ) from error
        except OSError:  # a file system without locks
            yield
            return
        file.truncate(0)
        file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}) + "\n")
        file.flush()
        yield


def _holder(folder: Path) -> str:
    try:
        saved = json.loads((folder / LOCK).read_text(encoding="utf-8"))
        return f"process {saved['pid']} on {saved['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
