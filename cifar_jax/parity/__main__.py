"""python -m cifar_jax ledger [ledger], lockstep or convert: the evidence that this port is PyTorch's program.

Each command is a module with `main(argv) -> int`, where argv holds what follows the command's name.
"""

import importlib
import sys

from cifar_jax.commands import exit_code, help_wanted
from cifar_jax.errors import InputError

_COMMANDS = {
    "ledger": "cifar_jax.parity.ledger",
    "lockstep": "cifar_jax.parity.lockstep.command",
    "convert": "cifar_jax.parity.convert",
}


def main(argv: list[str]) -> int:
    """Runs a command, the ledger unless another is named first; returns its exit code, 2 for wrong input."""
    return exit_code(_run, argv)


def _run(argv: list[str]) -> int:
    name, rest = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else ("ledger", argv)
    if name not in _COMMANDS:
        raise InputError(f"The command must be one of {', '.join(_COMMANDS)}, got {name!r}.")
    try:
        command = importlib.import_module(_COMMANDS[name])
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise InputError(
            "This command compares with PyTorch, which is not installed: pip install '.[torch]'."
        ) from error
    # The ledger's parser has a help of its own.
    return 0 if name != "ledger" and help_wanted(rest, command.__doc__) else command.main(rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
