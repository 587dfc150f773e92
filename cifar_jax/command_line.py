"""What the commands beside main.py share: how they end, their help, and main.py's config flags among their own."""

import signal
import sys
from collections.abc import Callable, Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from cifar_jax.config import explain_flag_error
from cifar_jax.errors import InputError
from cifar_jax.interrupt import Interrupted


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


def parse(argv: list[str], *, takes: int = 0) -> tuple[list[str], ConfigDict | None]:
    """Splits a command's arguments into its own and the config that `--config=FILE --config.KEY=VALUE` name.

    Args:
      argv: what follows the command's name.
      takes: how many arguments of its own the command takes.

    Returns:
      These arguments, and the config, or None where no --config is given.

    Raises:
      InputError: an unknown flag, a config that cannot be read, or another number of arguments.
    """
    argv, values = ["", *argv], flags.FlagValues()
    given = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        rest = values(argv)[1:]
        config = given.value
        if config is not None:
            config.to_dict()  # a file that does not exist shows here
    except Exception as error:  # a config file may raise anything
        raise InputError(explain_flag_error(argv, error)) from error
    if len(rest) != takes:
        raise InputError(f"The command takes {takes} arguments beside its flags, got {len(rest)}: {' '.join(rest)}.")
    return rest, config
