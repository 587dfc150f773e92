"""What a hypothesis is: a change of PyTorch's copy, and what it means if the copy then does what the port does."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from cifar_jax.parity.comparison.torch_side import Call, Change, call_again

# How much a finding weighs. A fault: the two do not compute the same. A layout: they do, with the weights in another
# order. A note: a difference that is none of the port's making, or that costs nothing.
FAULT, LAYOUT, NOTE = "fault", "layout", "note"


class Proposal(NamedTuple):
    """One change to try.

    kind: the hypothesis ("epsilon").
    says: what the port does, if this is it ("uses epsilon 1e-06 where PyTorch has 1e-05").
    fix: the line to write in the port.
    changes: what to do at which call.
    severity: FAULT, LAYOUT or NOTE.
    at: number of the call to name, where it is not the one at which both sides part.
    """

    kind: str
    says: str
    fix: str
    changes: Mapping[int, Change]
    severity: str = FAULT
    at: int | None = None

    def cause_known(self) -> bool:
        """Whether this explains anything; the port's own values alone do not."""
        return bool(self.kind)


class Place(NamedTuple):
    """Where both sides part: a call whose inputs are equal on both sides, and whose result is not.

    call: that call, with its arguments. calls: all calls of the run.
    targets: values of the port that have no equal in PyTorch and follow from the equal ones, in the shape of the
      call's result where their size allows it; the call's counterpart is most likely among them.
    target_types: the type in which the port computes each target.
    masks: the port's boolean values, such as masks of dropout.
    arrays: the port's parameters that have no counterpart, by path.
    tensors: PyTorch's parameters by name.
    train: whether this is training.
    """

    call: Call
    calls: Sequence[Call]
    targets: Sequence[np.ndarray]
    target_types: Sequence[str]
    masks: Sequence[np.ndarray]
    arrays: Mapping[str, np.ndarray]
    tensors: Mapping[str, np.ndarray]
    train: bool

    def consumers(self) -> list[Call]:
        """The calls that take the result."""
        return [each for each in self.calls if self.call.index in each.inputs]

    def producers(self) -> list[Call]:
        """The calls whose results this one takes."""
        return [self.calls[i] for i in self.call.inputs if i >= 0]


class Kind(NamedTuple):
    """A hypothesis, declared once.

    id: its name in results. title: in a few words. symptom: what a user sees.
    functions: names of the torch functions it concerns; None for all.
    propose: the changes to try at a place.
    """

    id: str
    title: str
    symptom: str
    functions: frozenset[str] | None
    propose: Callable[[Place], Iterator[Proposal]]


def names(text: str) -> frozenset[str]:
    """A set of names from words."""
    return frozenset(text.split())


def with_arguments(**new: Any) -> Change:
    """The same call with other arguments."""
    return lambda call, arguments: call_again(call, {**arguments, **new})


def replaced_by(function: Callable[..., Any]) -> Change:
    """Another function of the call's arguments, which it takes by name."""
    return lambda call, arguments: function(**arguments)


def left_out(call: Call, arguments: Mapping[str, Any]) -> torch.Tensor:
    """The call's first tensor, as if the call were not there."""
    return first_tensor(arguments) * 1.0


def first_tensor(arguments: Mapping[str, Any]) -> torch.Tensor:
    """The first tensor among a call's arguments."""
    for value in arguments.values():
        if isinstance(value, torch.Tensor):
            return value
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], torch.Tensor):
            return value[0]
    raise ValueError("The call takes no tensor.")


def number(value: float) -> str:
    """A number as a user would write it."""
    return f"{value:.6g}"


def pair(value: Any, rank: int) -> tuple[int, ...]:
    """An int or a sequence as one number for each spatial axis."""
    if isinstance(value, int):
        return (value,) * rank
    value = tuple(value)
    return value * rank if len(value) == 1 else value


def given(value: np.ndarray) -> Change:
    """The port's own value; its gradient goes the way of torch's where the shapes agree."""
    tensor = torch.from_numpy(np.array(value))

    def change(call: Call, arguments: Mapping[str, Any]) -> torch.Tensor:
        own = call_again(call, arguments)
        own = own[0] if isinstance(own, (tuple, list)) else own
        wanted = tensor.to(own.dtype)
        return own + (wanted - own).detach() if own.shape == wanted.shape else own.sum() * 0 + wanted

    return change
