"""python -m cifar_jax COMMAND: everything that this project does. Each command has a --help of its own."""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from cifar_jax.command_line import end, exit_code
from cifar_jax.errors import InputError


class _Command(NamedTuple):
    """Where a command is (`module:function`, which takes its arguments and gives its exit code), and what it does."""

    target: str
    summary: str


COMMANDS = {
    "train": _Command("runs.command:train", "train what a config names; goes on where a run stopped"),
    "evaluate": _Command("runs.command:evaluate", "evaluate the saved epochs of a run"),
    "predict": _Command("use.predict:main", "show pictures to a trained network"),
    "export": _Command("use.export:main", "a trained network as one file that needs only jax"),
    "record": _Command("use.record:main", "a run's figures, with what is behind them, as one JSON file"),
    "compare": _Command("parity.comparison.command:main", "any PyTorch model with any Flax model; names the cause"),
    "ledger": _Command("parity.ledger.command:main", "every difference between PyTorch and JAX, measured"),
    "lockstep": _Command("parity.lockstep.command:main", "the same run in PyTorch and here, step by step"),
    "convert": _Command("parity.convert:main", "weights and whole runs, from PyTorch to here and back"),
    "table": _Command("studies.table.command:main", "every config under every seed, and the lecture's table"),
    "report": _Command("studies.table.report.command:main", "the report of a table, as one HTML page"),
    "benchmark": _Command("studies.benchmark.compare:main", "PyTorch, plain Flax and this project, side by side"),
    "benchmark curves": _Command("studies.benchmark.curves:main", "how the cost grows with the work"),
    "benchmark suite": _Command("studies.benchmark.suite:main", "several settings within a budget of time"),
    "scaling": _Command("studies.benchmark.scaling:main", "what training on several devices costs"),
    "compile-check": _Command(
        "studies.compile_check.command:main", "what XLA makes of the programs for GPUs and TPUs that are not here"
    ),
    "fill": _Command("fill:main", "write the figures in results/ into a document"),
}
# Names that commands had before.
_ALIASES = {"parity": "ledger", "parity lockstep": "lockstep", "parity convert": "convert", "parity ledger": "ledger"}
_ALIASES |= {"benchmark compare": "benchmark"}


def help_text() -> str:
    """All commands, a line each."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}}{command.summary}" for name, command in COMMANDS.items()]
    return "\n".join([__doc__, "", *lines, "", "Exit codes: 0 done, 1 done with a finding, 2 wrong input,"]) + (
        " 3 a process was lost,\n130 or 143 stopped (Ctrl-C, SIGTERM)."
    )


def find(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The command that the first word or two of a command line name, and the words after.

    Raises:
      InputError: they name none.
    """
    for words in (2, 1):
        name = " ".join(argv[:words])
        name = _ALIASES.get(name, name)
        if len(argv) >= words and name in COMMANDS:
            return name, list(argv[words:])
    raise InputError(f"The command must be one of {', '.join(COMMANDS)}, got {argv[0]!r}.")


def run(argv: list[str]) -> int:
    """Runs the command that `argv` begins with; gives its exit code.

    Raises:
      InputError: no such command, or something that it was given is wrong.
    """
    # Pictures go to files. The backend of a notebook that this was started from may not be installed here.
    os.environ["MPLBACKEND"] = "agg"
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0 if argv else 2
    name, rest = find(argv)
    module, _, function = COMMANDS[name].target.partition(":")
    return getattr(importlib.import_module(f"cifar_jax.{module}"), function)(rest)


def main(*command: str) -> None:
    """The script `cifar-jax`, and `python -m cifar_jax`; `command` stands before what the command line says."""
    end(exit_code(run, [*command, *sys.argv[1:]]))


if __name__ == "__main__":
    main()
