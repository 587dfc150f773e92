"""The flags that name a config and change it, for every command that takes one."""

import argparse
import re
from collections.abc import Sequence

import ml_collections

from cifar_jax.command_line import Parser
from cifar_jax.errors import InputError
from cifar_jax.runs.config import KEYS
from cifar_jax.runs.config_file import find_config, load_config


def add_config(parser: Parser, default: str | None) -> None:
    """Adds `--config` and, for the help, `--config.KEY`; `parse` puts the config into `arguments.config`.

    default: the config where none is named; None where the command must or can do without.
    """
    otherwise = f"; {default} unless given" if default else ""
    parser.add_argument(
        "--config", default=default, metavar="FILE",
        help=f"a config file, or the name of one that comes with the package{otherwise}",
    )  # fmt: skip
    parser.add_argument("--config.KEY", dest="override", metavar="VALUE", help="changes a key of the config")


def keys_help() -> str:
    """Every key of the config with its default, what it takes and what it does."""
    lines = ["Keys of the config, with their defaults, for --config.KEY=VALUE:"]
    for name, key in KEYS.items():
        lines += [f"  {name}={key.default!r}: {key.help} ({key.field.takes})"]
    return "\n".join(lines)


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """A command line without its `--config.KEY=VALUE` or `--config.KEY VALUE`, and these, in order.

    Raises:
      InputError: a key without a value.
    """
    rest, overrides, words = [], [], iter(argv)
    for word in words:
        override = re.fullmatch(r"--?config\.([^=]*)(?:(=)(.*))?", word, re.DOTALL)
        if override is None:
            rest.append(word)
            continue
        text = override[3] if override[2] else next(words, None)
        if text is None:
            raise InputError(f"--config.{override[1]} must be followed by = and a value, got {word}.")
        overrides.append((override[1], text))
    return rest, overrides


def parse(parser: Parser, argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command.

    After `add_config`, `arguments.config` is the config with its overrides, None where none is named, and
    `arguments.config_name` its file's name. `--help` prints the help and raises SystemExit(0).

    Raises:
      InputError: a flag, the config file, a key or a value is wrong.
    """
    words, overrides = split_overrides(argv)
    arguments = parser.parse_args(words)
    if not hasattr(arguments, "config"):
        if overrides:
            raise InputError(f"{parser.prog} takes no config, got --config.{overrides[0][0]}.")
        return arguments
    arguments.config_name = None
    if arguments.config is not None:
        arguments.config_name = find_config(arguments.config).stem
        arguments.config = load_config(arguments.config, overrides)
    elif overrides:
        raise InputError(f"--config must name a config where --config.{overrides[0][0]} changes it, got nothing.")
    return arguments


def required_config(arguments: argparse.Namespace) -> ml_collections.ConfigDict:
    """The config of a command that cannot do without.

    Raises:
      InputError: none was named.
    """
    if arguments.config is None:
        raise InputError("--config must name a config, such as --config=configs/cnn6_adam.py, got nothing.")
    return arguments.config
