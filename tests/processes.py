"""Processes that a test starts beside its own."""

import contextlib
import os
import socket
import subprocess
import sys

from conftest import ROOT


def free_port(ports=(0,)):
    for port in ports:
        with contextlib.closing(socket.socket()) as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return s.getsockname()[1]
    raise OSError("no free port")


def start(*arguments, **variables):
    """A process that compiles without optimisation, which takes half the time."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        **variables,
    }
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process, timeout=900):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err
