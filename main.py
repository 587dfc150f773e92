"""Trains or evaluates what a config file names: python main.py --config=configs/cnn6_adam.py

With --mode=predict it shows pictures to a trained network: python main.py --mode=predict --workdir=RUN IMAGE...
All other commands are those of python -m cifar_jax, as are these three: train, evaluate, predict.
"""

import sys

from cifar_jax.__main__ import run
from cifar_jax.command_line import end, exit_code
from cifar_jax.errors import InputError

MODES = ("train", "evaluate", "predict")


def main(argv: list[str]) -> int:
    """Runs the command that `--mode` names, train unless it is given; gives its exit code.

    Raises:
      InputError: there is no such mode, or something that the command was given is wrong.
    """
    mode, rest, words = "train", [], iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag in ("--mode", "-mode"):
            mode = value if equals else next(words, "")
        else:
            rest.append(word)
    if mode not in MODES:
        raise InputError(f"--mode must be one of {', '.join(MODES)}, got {mode!r}.")
    return run([mode, *rest])


if __name__ == "__main__":
    end(exit_code(main, sys.argv[1:]))
