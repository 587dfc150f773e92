"""python -m cifar_jax benchmark [compare], curves or suite: how fast this project is, and beside what.

Each command is a module with `main(argv) -> int`, where argv holds what follows the command's name.
"""

import importlib
import sys

from cifar_jax.commands import exit_code, help_wanted
from cifar_jax.errors import InputError

_COMMANDS = {
    "compare": "cifar_jax.studies.benchmark.compare",
    "curves": "cifar_jax.studies.benchmark.curves",
    "suite": "cifar_jax.studies.benchmark.suite",
}


def main(argv: list[str]) -> int:
    """Runs a command, the comparison unless another is named first; returns its exit code, 2 for wrong input."""
    return exit_code(_run, argv)


def _run(argv: list[str]) -> int:
    name, rest = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else ("compare", argv)
    if name not in _COMMANDS:
        raise InputError(f"The command must be one of {', '.join(_COMMANDS)}, got {name!r}.")
    command = importlib.import_module(_COMMANDS[name])
    return 0 if help_wanted(rest, command.__doc__) else command.main(rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
