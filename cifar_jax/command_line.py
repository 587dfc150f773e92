"""What all commands share: one kind of parser, and one way to end.

Exit codes:
  0 done; 1 done, with a finding (a run diverged, two sides differ, some runs failed); 2 wrong input, in one sentence;
  3 another process of the job was lost; 130 stopped by Ctrl-C; 143 stopped by SIGTERM; 141 nobody reads the output.
"""

import argparse
import math
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from cifar_jax.devices.interrupt import Interrupted
from cifar_jax.errors import DivergedError, InputError

# Packages that only some commands need, and the extra that installs each.
_OPTIONAL = {"torch": "torch", "safetensors": "torch", "altair": "report", "vl_convert": "report"}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are `InputError`s, and whose help is the text of a module."""

    def __init__(self, command: str, text: str):
        super().__init__(
            prog=f"python -m cifar_jax {command}", usage=f"python -m cifar_jax {command} ...", description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        )  # fmt: skip

    def error(self, message: str):
        """Raises what argparse would print, as a sentence that names the flag, what it takes and what it got."""
        lists = f"{self.prog} --help lists what it takes"
        name, _, said = message.removeprefix("argument ").partition(": ")
        if said.startswith("must "):
            raise InputError(f"{name} {said}.")
        if choices := re.fullmatch(r"invalid choice: (.*) \(choose from (.*)\)", said, re.DOTALL):
            raise InputError(f"{name} must be one of {choices[2]}, got {choices[1]}.".replace("'", ""))
        if said.startswith("expected "):
            raise InputError(f"{name} must be followed by a value, got nothing.")
        if name.startswith("unrecognized arguments"):
            raise InputError(f"{self.prog} does not take {message.partition(': ')[2]}; {lists}.")
        if name.startswith("the following arguments are required"):
            raise InputError(f"{said} must be given, got nothing; {lists}.")
        raise InputError(f"{lists}: {message}.")


def integer(low: int) -> Callable[[str], int]:
    """For `add_argument(type=...)`: an integer of at least `low`."""

    def read(text: str) -> int:
        if re.fullmatch(r"[+-]?\d{1,18}", text.strip()) and int(text) >= low:
            return int(text)
        raise argparse.ArgumentTypeError(f"must be an integer of at least {low}, got {text[:50]!r}")

    return read


def number(low: int | float) -> Callable[[str], float]:
    """For `add_argument(type=...)`: a finite number of at least `low`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if low <= value < math.inf:
            return value
        raise argparse.ArgumentTypeError(f"must be a number of at least {low:g}, got {text[:50]!r}")

    return read


def path(text: str) -> Path:
    """For `add_argument(type=...)`: a path; `~` is the home folder, as after `--flag=` the shell leaves it alone."""
    if not text:
        raise argparse.ArgumentTypeError("must be a path, got ''")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # ~NAME of nobody
        raise argparse.ArgumentTypeError(f"must be a path, got {text[:100]!r}: {error}") from error


def words(text: str) -> list[str]:
    """For `add_argument(type=...)`: words between commas."""
    return [word for word in text.split(",") if word]


def add_job(parser: Parser) -> None:
    """Adds the flags that say where a process stands in a job of many; see `devices.cluster.find_place`."""
    job = parser.add_argument_group("a job of many processes (under SLURM or Kubernetes these are found)")
    job.add_argument("--coordinator", metavar="HOST:PORT", help="of the first process")
    job.add_argument("--processes", metavar="N", help="how many there are")
    job.add_argument("--process_id", metavar="I", help="which one this is, from 0")


def exit_code(main: Callable[[list[str]], int | None], argv: list[str]) -> int:
    """Runs a command; gives what it returns or, after a sentence on standard error, the code of how it ended."""
    try:
        return main(argv) or 0
    except SystemExit as ended:  # argparse, after --help
        return ended.code or 0
    except InputError as error:
        return _say(f"Error: {error}", 2)
    except DivergedError as error:
        return _say(f"Error: {error}", 1)
    except ModuleNotFoundError as error:
        if error.name not in _OPTIONAL:
            raise
        extra = _OPTIONAL[error.name]
        return _say(f"Error: this command needs {error.name}, which pip install '.[{extra}]' installs.", 2)
    except Interrupted as interrupted:
        return _say(str(interrupted), 128 + interrupted.signum)
    except KeyboardInterrupt:
        return _say("Stopped.", 128 + signal.SIGINT)
    except BrokenPipeError:  # whoever read the output has ended, as in `| head`
        sys.stdout = None  # nor is there anyone for what is still buffered
        return 128 + signal.SIGPIPE


def _say(sentence: str, code: int) -> int:
    print(sentence, file=sys.stderr, flush=True)
    return code


def end(code: int) -> None:
    """Ends the process with this exit code."""
    if code <= 128:
        sys.exit(code)
    # Not sys.exit: the runtime would first finish the steps that are under way, which may take a minute.
    if sys.stdout is not None:
        sys.stdout.flush()
    os._exit(code)
