"""Compares a PyTorch model with a Flax model (Linen or NNX), and names the cause of each difference.

    python -m cifar_jax compare theirs.py:make_model ours.py:make_model --input=8,3,32,32

Each model is file.py:name or package.module:name: a class, a function that takes no arguments (or rngs, for NNX), or an
instance. Neither is changed. Both get the same weights in float64; every value, gradient and running statistic is
compared; where they part, a copy of the PyTorch model is changed in one way after another until it does what the port
does, and that way is named. The parameters of both sides find each other.

Exit codes: 0 equal, 1 different, 2 wrong input.
"""

import argparse
import ast
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cifar_jax.command_line import Parser, integer, path
from cifar_jax.errors import InputError


def main(argv: list[str]) -> int:
    """Runs the command; returns 0 where both are equal and 1 where they differ.

    Raises:
      InputError: a target cannot be found or raises, or a flag is wrong.
    """
    given = _parse(argv)
    targets = given.theirs, given.ours
    from cifar_jax.parity.comparison import compare, load_mapping
    from cifar_jax.parity.comparison.targets import find, make
    from cifar_jax.parity.comparison.updates import compare_optimizers, compare_schedules

    found = [find(target, name) for target, name in zip(targets, ("the PyTorch model", "the port"), strict=True)]
    torch_model, flax_module = (
        make(each, name) for each, name in zip(found, ("the PyTorch model", "the port"), strict=True)
    )
    _check_model(torch_model, targets[0])
    batches = given.input
    if given.batches is not None:
        function = find(given.batches, "--batches")
        batches = list(function() if callable(function) else function)
    initial = None
    if given.initial:
        if not all(
            callable(each) and each is not model for each, model in zip(found, (torch_model, flax_module), strict=True)
        ):
            raise InputError("--initial must be given with models that are classes or functions, got an instance.")
        initial = (lambda: make(found[0], "the PyTorch model")), (lambda seed: make(found[1], "the port", seed=seed))
    result = compare(
        torch_model,
        flax_module,
        batches,
        loss=_two(given.loss, "--loss", find),
        call=_modes(given.call),
        mapping=None if given.mapping is None else load_mapping(given.mapping),
        initial=initial,
        progress=_progress(),
    )
    optimizers, schedules = _two(given.optimizer, "--optimizer", find), _two(given.schedule, "--schedule", find)
    if optimizers is not None:
        result = result.with_behavior(compare_optimizers(*optimizers, torch_model, result.mapping))
    if schedules is not None:
        result = result.with_behavior(
            compare_schedules(*schedules, optimizers[0] if optimizers else None, given.steps_per_epoch)
        )
    print(result)
    if given.show_mapping:
        print(result.mapping)
    if given.save_mapping:
        result.mapping.save(given.save_mapping)
    if given.json:
        result.write_json(_ready(given.json))
    if given.html:
        result.write_html(_ready(given.html))
        print(f"Page: {given.html}")
    if given.reproductions and result.reproductions:
        for path in result.write_reproductions(given.reproductions):
            print(f"Unexplained: {path}")
    return 0 if result.equal else 1


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser("compare", __doc__)
    parser.add_argument("theirs", metavar="THEIRS", help="the PyTorch model, file.py:name or package.module:name")
    parser.add_argument("ours", metavar="OURS", help="the Flax model, likewise")
    for flag, metavar, text in (
        ("input", "SHAPES", "shapes of the inputs in PyTorch's order: 8,3,32,32; several as 8,16:int;8,10"),
        ("batches", "TARGET", "instead: a function that gives batches, arrays or tuples of arrays in PyTorch's order; "
         "with --loss, the last array of each has the labels"),
        ("loss", "TWO", "TARGET,TARGET: PyTorch's and the port's loss, each a function of (results, labels)"),
        ("optimizer", "TWO", "TARGET,TARGET: parameters -> torch.optim.Optimizer, and () -> optax's transformation"),
        ("schedule", "TWO", "TARGET,TARGET: optimizer -> torch's scheduler, and update -> learning rate"),
        ("call", "MODES", "how the port is asked for its mode, where its argument is not called train, deterministic "
         "or the like: 'train: is_training=True; eval: is_training=False'"),
        ("mapping", "FILE", "pairs of parameters from --save-mapping, edited where they were wrong"),
    ):  # fmt: skip
        parser.add_argument(f"--{flag}", metavar=metavar, help=text)
    parser.add_argument(
        "--steps-per-epoch", type=integer(1), default=1, metavar="N",
        help="updates between two calls of torch's scheduler.step() (1)",
    )  # fmt: skip
    parser.add_argument("--initial", action="store_true", help="compare initial distributions as well")
    parser.add_argument("--show-mapping", action="store_true", help="print which parameter is which")
    parser.add_argument("--save-mapping", type=path, metavar="FILE", help="write the pairs that were found")
    parser.add_argument("--html", type=path, metavar="FILE", help="one page: causes, and both models layer by layer")
    parser.add_argument("--json", type=path, metavar="FILE", help="all figures")
    parser.add_argument(
        "--reproductions", metavar="DIR",
        help="for each difference that nothing explains, a file with the arguments and both results",
    )  # fmt: skip
    given = parser.parse_args(argv)
    if (given.input is None) == (given.batches is None):
        got = "both" if given.input is not None else "neither"
        raise InputError(f"One of --input=8,3,32,32 and --batches=file.py:function must be given, got {got}.")
    return given


def _check_model(model: Any, target: str) -> None:
    import torch

    if not isinstance(model, torch.nn.Module):
        raise InputError(f"The first model must be a torch.nn.Module, got {type(model).__name__} from {target}.")


def _two(text: str | None, field: str, find: Callable) -> tuple[Any, Any] | None:
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 2:
        raise InputError(f"{field} must be two targets, theirs.py:name,ours.py:name, got {text!r}.")
    return find(parts[0], field), find(parts[1], field)


def _modes(text: str | None) -> dict[str, dict[str, Any]] | None:
    """Keyword arguments by mode from "train: a=1; eval: a=2"."""
    if text is None:
        return None
    modes: dict[str, dict[str, Any]] = {}
    try:
        for part in text.split(";"):
            mode, _, arguments = part.partition(":")
            call = ast.parse(f"f({arguments.strip()})", mode="eval").body
            modes[mode.strip()] = {each.arg: ast.literal_eval(each.value) for each in call.keywords}
    except (SyntaxError, ValueError):
        modes = {}
    if set(modes) != {"train", "eval"}:
        raise InputError(f'--call must be "train: name=value; eval: name=value", got {text!r}.')
    return modes


def _progress() -> Callable[[str], None]:
    """Lines on the screen that overwrite each other; nothing where the output is no terminal."""
    if not sys.stderr.isatty():
        return lambda line: None
    return lambda line: print(f"\r\x1b[K{line[:100]}", end="", file=sys.stderr, flush=True)


def _ready(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    return file
