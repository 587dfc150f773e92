"""The config flags of main.py for a command with arguments of its own."""

from absl import flags
from ml_collections import ConfigDict, config_flags

from cifar_jax.errors import InputError
from cifar_jax.runs.config import explain_flag_error


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
