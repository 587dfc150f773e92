"""What a key of the config takes: in words for an error message, and as a test."""

import ast
import math
from collections.abc import Callable
from typing import Any, NamedTuple


class Field(NamedTuple):
    """What a key takes, in words and as a test."""

    takes: str
    accepts: Callable[[Any], bool]


def choice(*names: str) -> Field:
    """One of these words."""
    return Field("one of " + ", ".join(names), lambda value: isinstance(value, str) and value in names)


def integer(low: int, high: int | None = None) -> Field:
    """An integer within these bounds, both included."""
    takes = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"

    def accepts(value):
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and low <= value and (high is None or value <= high)

    return Field(takes, accepts)


def number(takes: str, accepts: Callable[[float], bool]) -> Field:
    """A finite number with a property, which `takes` says in words."""

    def test(value):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and math.isfinite(value) and accepts(value)

    return Field(takes, test)


def or_none(field: Field, none: str) -> Field:
    """What `field` takes, or None, which means what `none` says."""
    return Field(f"{field.takes}, or None for {none}", lambda value: value is None or field.accepts(value))


POSITIVE = number("a finite number above 0", lambda value: value > 0)
NOT_NEGATIVE = number("a finite number of at least 0", lambda value: value >= 0)
BELOW_ONE = number("a number from 0 to below 1", lambda value: 0 <= value < 1)
BOOL = Field("True or False", lambda value: isinstance(value, bool))


def names_out_of(names: tuple[str, ...], example: str) -> Field:
    """A list of words, each out of `names`."""

    def accepts(value):
        return isinstance(value, list | tuple) and all(isinstance(name, str) and name in names for name in value)

    return Field(f"() or rules such as {example}, out of {', '.join(names)}", accepts)


def _is_stages(value) -> bool:
    def widths(stage):
        return isinstance(stage, list | tuple) and stage and all(integer(1).accepts(width) for width in stage)

    return isinstance(value, list | tuple) and all(widths(stage) for stage in value)


STAGES = Field("() or widths such as ((16, 16), (32, 32), (64, 64))", _is_stages)


def parse_text(text: str, field: Field) -> Any:
    """The value that `text`, from a command line, stands for: the text itself where the field takes that.

    Otherwise what it is in Python (a number, None, a tuple), or in any case True or False; text that is none of these
    stays text, which the field will refuse.

    >>> parse_text("0.1", POSITIVE), parse_text("sgd", choice("sgd")), parse_text("None", or_none(BOOL, "neither"))
    (0.1, 'sgd', None)
    """
    if field.accepts(text):
        return text
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # the last two: brackets without end
        return text
