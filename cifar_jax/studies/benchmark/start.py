"""How long `python main.py` takes to its first finished step of training, as one sees it on a terminal."""

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
import termios
import time

from cifar_jax.errors import InputError

# The progress bar's count of images, once it is more than none.
_MOVED = re.compile(rb"epoch 1/\d+:[^\r]*?\b([1-9]\d*)/\d+ ")


def measure_start(arguments: list[str], *, timeout: float = 600.0) -> dict[str, float]:
    """Seconds to the first step: `cold`, from an empty cache of compiled programs, and `warm`, once more after it.

    The bar is redrawn ten times a second, which is how exact this is; on an accelerator it moves after the first epoch.
    `import` is what `import cifar_jax.runs.train` takes of it.

    Args:
      arguments: of `python -m cifar_jax train`, which is `python main.py`, without --workdir.
      timeout: seconds after which a start counts as failed.

    Raises:
      InputError: it ended, or did not come to its first step in time.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "XDG_CACHE_HOME": folder}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        seconds = {
            name: _first_step([*arguments, f"--workdir={folder}/{name}"], environment, timeout)
            for name in ("cold", "warm")
        }
    return {**seconds, "import": _import_seconds()}


def sentence(seconds: dict[str, float]) -> str:
    """What `measure_start` found, in words.

    >>> sentence({"cold": 18.2, "warm": 5.4, "import": 1.9})
    'From python main.py to the first finished step: 18.2 s cold, 5.4 s warm, 1.9 s of it imports.'
    """
    return (
        f"From python main.py to the first finished step: {seconds['cold']:.1f} s cold, {seconds['warm']:.1f} s warm, "
        f"{seconds['import']:.1f} s of it imports."
    )


def _first_step(arguments: list[str], environment: dict[str, str], timeout: float) -> float:
    terminal, its_end = pty.openpty()
    termios.tcsetwinsize(its_end, (24, 100))  # a bar on a terminal of no width would show no count
    seen, begin = b"", time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "cifar_jax", "train", *arguments], env=environment, stdin=subprocess.DEVNULL,
        stdout=its_end, stderr=its_end, start_new_session=True,
    )  # fmt: skip
    os.close(its_end)
    try:
        while time.perf_counter() - begin < timeout:
            try:
                piece = os.read(terminal, 4096)
            except OSError:  # the terminal's other end is closed
                piece = b""
            if not piece:
                break
            seen += piece
            if _MOVED.search(seen):
                return time.perf_counter() - begin
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(terminal)
    lines = [line.strip() for line in seen.decode(errors="replace").splitlines() if line.strip()]
    raise InputError(f"python main.py {' '.join(arguments)} made no step of training: {(lines or ['silence'])[-1]}")


def _import_seconds() -> float:
    code = "import time; begin = time.perf_counter(); import cifar_jax.runs.train; print(time.perf_counter() - begin)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)
