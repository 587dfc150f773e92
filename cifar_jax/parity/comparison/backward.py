"""Gradients: of every parameter, and of every value that both sides have, from the result back to the inputs.

Both sides get the same gradient of their results. Going backwards, the first value whose gradient differs although the
gradients of all that it feeds agree is where the backward passes part.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import torch

from cifar_jax.parity.comparison.causes.proposal import FAULT
from cifar_jax.parity.comparison.jaxpr_values import gradients
from cifar_jax.parity.comparison.mapping import WeightMap
from cifar_jax.parity.comparison.torch_side import Call, Change, Run, call_again
from cifar_jax.parity.comparison.walk import Difference, PortRun, as_torch, both_names


class Gradients(NamedTuple):
    """Gradients of both sides in torch's shapes.

    parameters: errors by torch's name, relative to the largest gradient of that tensor.
    values: errors at calls, by the call's number. differences: where the backward passes part, and why.
    """

    parameters: dict[str, float]
    values: dict[int, float]
    differences: list[Difference]


def compare_gradients(
    run: Callable[[Mapping[int, Change]], tuple[Run, dict[str, np.ndarray]]],
    changes: Mapping[int, Change],
    port: PortRun,
    closed,
    arguments: Sequence,
    paths: Sequence[str],
    mapping: WeightMap,
    matched: Mapping[int, Sequence[int]],
    frozen: frozenset[str],
    tolerance: float,
) -> Gradients:
    """Compares both backward passes.

    Args:
      run: runs PyTorch's copy forward and backward with changes; gives the run and the gradient of each parameter.
      changes: what makes PyTorch's forward pass equal to the port's.
      port, closed, arguments: the port's run, its jaxpr and the inputs of that.
      paths: names of the port's parameters, which are the first arguments.
      mapping: pairs of parameters. matched: the port's equals of each call.
      frozen: torch's parameters with requires_grad=False.
      tolerance: of an error relative to the largest entry of a gradient.
    """
    forward, torch_gradients = run(changes)
    pairs: dict[int, list[int]] = {}
    last = {id(call.live): call.index for call in forward.calls}
    for index, numbers in matched.items():
        if last[id(forward.calls[index].live)] != index:
            continue  # changed in place later, so that its gradient is that of the later value
        for number in numbers:
            value, output = port.values[number], forward.calls[index].output
            if (
                value.array is not None
                and value.array.dtype.kind == "f"
                and _order(output.numpy(), value.array) is not None
            ):
                pairs.setdefault(index, []).append(number)
    weights = [_cotangent(output) for output in forward.outputs]
    port_weights = [
        _in_port(output.detach().numpy(), weight, port.values[number].array)
        for output, weight, number in zip(forward.outputs, weights, port.outputs, strict=False)
    ]

    def pull_back(results):
        return sum(
            (jnp.asarray(weight) * result).sum()
            for weight, result in zip(port_weights, results, strict=False)
            if weight is not None and jnp.issubdtype(result.dtype, jnp.floating)
        )

    inner, outer = gradients(
        closed,
        arguments,
        port.values,
        sorted({number for numbers in pairs.values() for number in numbers}),
        range(len(paths)),
        pull_back,
    )
    port_parameters = dict(zip(paths, (outer[i] for i in range(len(paths))), strict=True))
    differences: list[Difference] = []
    tried = dict(changes)
    while True:
        parameters = _parameter_errors(torch_gradients, port_parameters, mapping, frozen)
        values = _value_errors(forward, pairs, inner, port)
        places = list(itertools.islice(_places(forward, values, parameters, tolerance), 4))
        if not places or len(differences) >= 10:
            return Gradients(parameters, values, differences)
        # The last place may be none, where one side computes a value twice; the next ones are tried then.
        for found in places:
            explained = _explain(run, tried, forward, found, parameters, port_parameters, mapping, frozen, tolerance)
            if explained is not None:
                break
        index, name = found if explained is not None else places[0]
        call = forward.calls[index]
        value = port.values[pairs[index][0]] if index in pairs else None
        differences.append(
            Difference(
                len(differences) + 1,
                index,
                True,
                *both_names(call, value),
                parameters[name] if name else values[index],
                *(explained[0] if explained else ("", "", "")),
                FAULT,
            )
        )
        if explained is None:
            return Gradients(parameters, values, differences)
        tried |= explained[1]
        forward, torch_gradients = run(tried)


def _cotangent(output: torch.Tensor) -> np.ndarray:
    """The gradient of a result: 1 for a single number, such as a loss; else normal."""
    shape = tuple(output.shape)
    if output.numel() == 1:
        return np.ones(shape)
    return np.random.default_rng(0).normal(size=shape)


def weighted_sum(outputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """The scalar whose gradient both sides take."""
    floating = [each for each in outputs if each.is_floating_point() and each.requires_grad]
    return sum((torch.from_numpy(_cotangent(each)) * each).sum() for each in floating)


def _order(output: np.ndarray, array: np.ndarray) -> np.ndarray | None:
    """The port's flat positions of torch's elements, or None where no move of axes makes both equal."""
    positions = np.arange(array.size).reshape(array.shape)
    scale = max(float(np.abs(output).max(initial=0)), 1e-300)
    for moved, places in zip(as_torch(array, output.shape), as_torch(positions, output.shape), strict=True):
        if np.abs(moved - output).max(initial=0) <= 1e-6 * scale:
            return places.reshape(-1) if places.size else places
    return None


def _in_port(output: np.ndarray, weight: np.ndarray, array: np.ndarray) -> np.ndarray | None:
    places = _order(output, array)
    if places is None:
        return None
    flat = np.zeros(array.size)
    flat[places] = weight.reshape(-1)
    return flat.reshape(array.shape)


def _parameter_errors(torch_gradients, port_parameters, mapping: WeightMap, frozen) -> dict[str, float]:
    errors: dict[str, float] = {}
    for piece in mapping.pieces:
        if not piece.flax or piece.flax not in port_parameters or piece.torch in frozen:
            continue
        mine = torch_gradients.get(piece.torch)
        theirs = piece.to_torch(port_parameters[piece.flax])
        mine = np.zeros(theirs.shape) if mine is None else mine
        if piece.rows is not None and mine.shape != theirs.shape:
            mine = mine[piece.rows[0] : piece.rows[1]]
        scale = max(float(np.abs(mine).max(initial=0)), float(np.abs(theirs).max(initial=0)))
        largest = max((float(np.abs(each).max(initial=0)) for each in torch_gradients.values()), default=0.0)
        # A bias before a norm has the gradient 0, of which rounding is all that is left.
        error = float(np.abs(mine.reshape(theirs.shape) - theirs).max(initial=0)) / max(scale, 1e-9 * largest, 1e-300)
        if scale <= 1e-9 * largest:
            error = 0.0
        errors[piece.torch] = max(errors.get(piece.torch, 0.0), error)
    return errors


def _value_errors(forward: Run, pairs, inner, port: PortRun) -> dict[int, float]:
    errors: dict[int, float] = {}
    grads = {index: forward.calls[index].live.grad for index in pairs}
    grads = {index: grad.numpy() for index, grad in grads.items() if grad is not None}
    largest = max((float(np.abs(grad).max(initial=0)) for grad in grads.values()), default=0.0)
    for index, mine in grads.items():
        # Several values of the port may be this one, of which the port may use one.
        for number in pairs[index]:
            places = _order(forward.calls[index].output.numpy(), port.values[number].array)
            theirs = inner[number].reshape(-1)[places].reshape(mine.shape)
            scale = max(float(np.abs(mine).max(initial=0)), float(np.abs(theirs).max(initial=0)))
            error = 0.0 if scale <= 1e-9 * largest else float(np.abs(mine - theirs).max(initial=0)) / scale
            errors[index] = min(errors.get(index, np.inf), error)
    _accept_shares(errors, forward, pairs, inner, port, grads)
    return errors


def _accept_shares(errors, forward: Run, pairs, inner, port: PortRun, grads) -> None:
    """Takes errors off calls that compute one value several times, where their gradients add up to the port's."""
    groups: dict[tuple, list[int]] = {}
    for index in grads:
        groups.setdefault(tuple(pairs[index]), []).append(index)
    for numbers, indices in groups.items():
        if len({grads[i].shape for i in indices}) > 1 or len(indices) < 2:
            continue
        total = sum(grads[i] for i in indices)
        for number in numbers:
            places = _order(forward.calls[indices[0]].output.numpy(), port.values[number].array)
            theirs = inner[number].reshape(-1)[places].reshape(total.shape)
            if np.abs(total - theirs).max(initial=0) <= 1e-7 * max(float(np.abs(theirs).max(initial=0)), 1e-300):
                errors.update(dict.fromkeys(indices, 0.0))


def _places(forward: Run, values: Mapping[int, float], parameters: Mapping[str, float], tolerance: float):
    """Calls whose gradient, or a parameter's, differs while those of all calls they feed agree; last ones first."""
    if not any(error > tolerance for error in parameters.values()):
        # One value may be used at other places on each side, as a copy is; parameters alone are the same on both.
        return
    wrong = {index for index, error in values.items() if error > tolerance}
    fed: dict[int, list[int]] = {}
    for call in forward.calls:
        for source in call.inputs:
            fed.setdefault(source, []).append(call.index)
    for call in reversed(forward.calls):
        later = [i for i in fed.get(call.index, ()) if i in values]
        names = [n for n in call.parameters.values() if parameters.get(n, 0.0) > tolerance]
        if call.index in wrong and not any(i in wrong for i in later):
            yield call.index, ""
        if names and call.index not in wrong and call.index in values:
            yield call.index, names[0]
    rest = [name for name, error in parameters.items() if error > tolerance]
    for call in forward.calls:
        for name in call.parameters.values():
            if name in rest and not wrong:
                yield call.index, name


def _options(call: Call, name: str):
    """Changes that leave the forward pass as it is and alter the backward one, with what they mean."""
    if name and call.name == "embedding" and call.arguments.get("padding_idx") is not None:
        yield (
            "padding_row",
            "gives the row of the padding token a gradient; PyTorch's padding_idx keeps that row as it is",
            "stop the gradient of that row: table.at[0].set(jax.lax.stop_gradient(table[0]))",
            lambda c, a: call_again(c, {**a, "padding_idx": None}),
        )
    if name:
        slots = [slot for slot, its in call.parameters.items() if its == name]

        def frozen(c, a):
            return call_again(c, {**a, **{slot: a[slot].detach() for slot in slots if slot in a}})

        yield (
            "frozen_parameter",
            f"gives {name} no gradient, as if it were frozen",
            "no jax.lax.stop_gradient on this parameter",
            frozen,
        )
    else:
        if call.name == "relu":
            yield (
                "relu_at_zero",
                "gives the gradient 0.5 where the input is exactly 0, as jnp.maximum(x, 0) does",
                "nn.relu(x)",
                lambda c, a: torch.maximum(a["input"], torch.zeros_like(a["input"])),
            )
        for slot, value in call.arguments.items():
            if isinstance(value, torch.Tensor) and value.is_floating_point() and slot not in call.parameters:
                yield (
                    "stopped_gradient",
                    f"stops the gradient on the way into {call.name}",
                    "no jax.lax.stop_gradient on this value",
                    lambda c, a, slot=slot: call_again(c, {**a, slot: a[slot].detach()}),
                )
        yield (
            "stopped_gradient",
            "stops the gradient behind this value",
            "no jax.lax.stop_gradient on this value",
            lambda c, a: _plain(c, a).detach() + 0 * _first_grad(a),
        )
        for factor in (0.5, 2.0, -1.0, 0.1, 10.0):
            yield (
                "scaled_gradient",
                f"multiplies the gradient by {factor:g} here",
                "a gradient as PyTorch has it",
                lambda c, a, f=factor: _scaled(_plain(c, a), f),
            )


def _plain(call: Call, arguments):
    result = call_again(call, arguments)
    return result[0] if isinstance(result, (tuple, list)) else result


def _first_grad(arguments):
    return next(v for v in arguments.values() if isinstance(v, torch.Tensor)).sum() * 0


def _scaled(value: torch.Tensor, factor: float) -> torch.Tensor:
    return value * factor + (value * (1 - factor)).detach()


def _explain(run, changes, forward: Run, found, errors, port_parameters, mapping, frozen, tolerance: float):
    """The change of the backward pass after which the fewest parameters have another gradient; None without any.

    Args:
      run, port_parameters, mapping, frozen, tolerance: as in `compare_gradients`.
      changes: those so far. forward: the run with them.
      found: the call at which the backward passes part, and the parameter or "".
      errors: of the parameters' gradients so far.
    """
    call, name = forward.calls[found[0]], found[1]
    consumers = [each for each in forward.calls if call.index in each.inputs]
    candidates = [(call, name)] if name else [*((each, "") for each in consumers), (call, "")]
    wrong_before = sum(error > tolerance for error in errors.values())
    best = None
    for place, parameter in candidates:
        for kind, says, fix, change in _options(place, parameter):
            if changes.get(place.index) is not None and not parameter:
                continue
            try:
                _, its_gradients = run({**changes, place.index: change})
            except Exception:  # a change that this call cannot take
                continue
            parameters = _parameter_errors(its_gradients, port_parameters, mapping, frozen)
            wrong = sum(error > tolerance for error in parameters.values())
            if wrong < wrong_before and (best is None or wrong < best[0]):
                best = wrong, (kind, says, fix), {place.index: change}
            if best is not None and best[0] == 0:
                return best[1:]
    return None if best is None else best[1:]
