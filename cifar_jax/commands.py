"""What all commands beside main.py share: their help, and how they end."""

import signal
import sys
from collections.abc import Callable, Sequence

from cifar_jax.devices.interrupt import Interrupted
from cifar_jax.errors import InputError


def exit_code(main: Callable[[list[str]], int | None], argv: list[str]) -> int:
    """What a command returns, or, after saying so in a sentence, 2 for wrong input and 128 + N for signal N."""
    try:
        return main(argv) or 0
    except InputError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except Interrupted as interrupted:
        print(interrupted, file=sys.stderr)
        return 128 + interrupted.signum
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # whoever read the output has ended, as in `| head`
        sys.stdout = None  # nor is there anyone for what is still buffered
        return 128 + signal.SIGPIPE


def help_wanted(argv: Sequence[str], text: str | None) -> bool:
    """Whether the arguments ask for help; prints it if so, a module's docstring."""
    wanted = bool({"-h", "--help"} & set(argv))
    if wanted:
        print(text)
    return wanted
