"""Hypotheses about activations, dropout, numbers that multiply or add, and numeric types."""

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F

from cifar_jax.parity.comparison.causes.proposal import (
    NOTE,
    Kind,
    Place,
    Proposal,
    first_tensor,
    given,
    left_out,
    names,
    number,
)
from cifar_jax.parity.comparison.torch_side import call_again, fitting_masks

ACTIVATIONS = names(
    "relu relu6 leaky_relu gelu silu elu celu selu hardtanh hardswish hardsigmoid mish softplus sigmoid tanh prelu "
    "softsign tanhshrink logsigmoid clamp softmax log_softmax"
)
_FUNCTIONS = {
    "relu": F.relu,
    "relu6": F.relu6,
    "gelu (exact)": F.gelu,
    "gelu (tanh)": lambda x: F.gelu(x, approximate="tanh"),
    "gelu (sigmoid)": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
    "elu": F.elu,
    "selu": F.selu,
    "celu": F.celu,
    "hard_tanh": F.hardtanh,
    "hard_swish": F.hardswish,
    "hard_sigmoid": F.hardsigmoid,
    "mish": F.mish,
    "softplus": F.softplus,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "soft_sign": F.softsign,
    "log_sigmoid": F.logsigmoid,
    "leaky_relu(0.01)": lambda x: F.leaky_relu(x, 0.01),
    "leaky_relu(0.1)": lambda x: F.leaky_relu(x, 0.1),
    "leaky_relu(0.2)": lambda x: F.leaky_relu(x, 0.2),
    "leaky_relu(0.3)": lambda x: F.leaky_relu(x, 0.3),
    "absolute value": torch.abs,
    "exp": torch.exp,
    "square": torch.square,
}
_FLAX = {
    "relu": "nn.relu(x)",
    "relu6": "nn.relu6(x)",
    "silu": "nn.silu(x)",
    "elu": "nn.elu(x)",
    "selu": "nn.selu(x)",
    "hardswish": "nn.hard_swish(x)",
    "hardsigmoid": "nn.hard_sigmoid(x)",
    "hardtanh": "nn.hard_tanh(x)",
    "mish": "jax.nn.mish(x)",
    "softplus": "nn.softplus(x)",
    "sigmoid": "nn.sigmoid(x)",
    "tanh": "nn.tanh(x)",
    "softmax": "nn.softmax(x, axis=...)",
    "log_softmax": "nn.log_softmax(x, axis=...)",
    "celu": "nn.celu(x)",
}


def _in_flax(call) -> str:
    if call.name == "gelu":
        return f"nn.gelu(x, approximate={call.arguments.get('approximate', 'none') == 'tanh'})"
    if call.name == "leaky_relu":
        return f"nn.leaky_relu(x, negative_slope={call.arguments.get('negative_slope', 0.01)})"
    return _FLAX.get(call.name, f"the same as torch's {call.name}")


def _own_name(call) -> str:
    if call.name == "gelu":
        return f"gelu ({'tanh' if call.arguments.get('approximate') == 'tanh' else 'exact'})"
    if call.name == "leaky_relu":
        return f"leaky_relu({number(call.arguments.get('negative_slope', 0.01))})"
    return call.name


def _gelu(place: Place):
    call = place.call
    tanh = call.arguments.get("approximate", "none") == "tanh"
    words = ("exact", "tanh") if tanh else ("tanh", "exact")
    yield Proposal(
        "gelu_form",
        f"uses the {words[0]} form of GELU where PyTorch uses the {words[1]} one",
        _in_flax(call),
        {call.index: lambda c, a: F.gelu(a["input"], approximate="none" if tanh else "tanh")},
    )


def _slope(place: Place):
    call = place.call
    x = call.arguments["input"].detach().numpy()
    given = call.arguments.get("negative_slope", 0.01) if call.name == "leaky_relu" else math.nan
    own = "learns it" if math.isnan(given) else f"uses {number(given)}"
    slopes = [0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.3, 0.5, 0.0]
    for target in place.targets:
        # The slope follows from one negative entry, and must hold for all.
        if target.shape == x.shape and (x < 0).any():
            slopes.append(float(target[x < 0][0] / x[x < 0][0]))
    for slope in slopes:
        if slope != given and math.isfinite(slope):
            yield Proposal(
                "leaky_slope",
                f"uses the slope {number(slope)} where PyTorch {own}",
                _in_flax(call),
                {call.index: lambda c, a, slope=slope: F.leaky_relu(a["input"], slope)},
            )


def _other_activation(place: Place):
    call = place.call
    own = _own_name(call)
    for words, function in _FUNCTIONS.items():
        if words != own:
            yield Proposal(
                "activation",
                f"applies {words} where PyTorch applies {own}",
                _in_flax(call),
                {call.index: lambda c, a, f=function: f(a["input"])},
            )
    if call.name in ("softmax", "log_softmax"):
        other = "log_softmax" if call.name == "softmax" else "softmax"
        yield Proposal(
            "activation",
            f"applies {other} where PyTorch applies {call.name}",
            _in_flax(call),
            {call.index: lambda c, a: getattr(torch, other)(a["input"], a.get("dim", -1))},
        )
        function = torch.softmax if call.name == "softmax" else torch.log_softmax
        given = call.arguments.get("dim")
        for axis in range(call.output.ndim):
            if given is None or axis != given % call.output.ndim:
                yield Proposal(
                    "softmax_axis",
                    f"takes {call.name} over axis {axis} (in PyTorch's order) where PyTorch takes axis {given}",
                    f"nn.{call.name}(x, axis=...)",
                    {call.index: lambda c, a, axis=axis: function(a["input"], axis)},
                )


def _left_out(place: Place):
    call = place.call
    first = first_tensor(call.arguments)
    if first.shape == call.output.shape:
        what = f"the {call.kind} {call.module}" if hasattr(torch.nn, call.kind) and call.parameters else call.name
        fix = f"{_in_flax(call)} where PyTorch has it"
        yield Proposal("left_out", f"leaves out {what}", fix, {call.index: left_out})
        # The same line may run for several inputs, which meet only later.
        same = [each.index for each in place.calls if (each.name, each.source) == (call.name, call.source)]
        if len(same) > 1:
            yield Proposal("left_out", f"leaves out {what}", fix, dict.fromkeys(same, left_out))


def _added(place: Place):
    """An activation that PyTorch does not have, before or after the call."""
    call = place.call

    def after(c, a, f):
        return f(call_again(c, a))

    def before(c, a, f, slot):
        return call_again(c, {**a, slot: f(a[slot])})

    slots = [
        slot
        for slot, value in call.arguments.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point() and slot not in call.parameters
    ]
    for words, function in _FUNCTIONS.items():
        fix = f"no {words} here"
        for producer in place.producers():
            yield Proposal(
                "added_activation",
                f"applies {words} after {producer.name}, which PyTorch does not",
                fix,
                {producer.index: lambda c, a, f=function: after(c, a, f)},
                at=producer.index,
            )
        changes = [("after", after), *(("before", functools.partial(before, slot=slot)) for slot in slots)]
        for when, change in changes:
            yield Proposal(
                "added_activation",
                f"applies {words} {when} {call.name}, which PyTorch does not",
                fix,
                {call.index: lambda c, a, f=function, change=change: change(c, a, f)},
            )
    if call.output.ndim >= 2:
        for axis in range(1, call.output.ndim):
            for log in (False, True):
                function = torch.log_softmax if log else torch.softmax
                yield Proposal(
                    "added_softmax",
                    f"applies {'log_' if log else ''}softmax after {call.name}, which PyTorch does not",
                    "return the logits themselves",
                    {call.index: lambda c, a, f=function, axis=axis: f(call_again(c, a), axis)},
                )


def _dropout(place: Place):
    call, a = place.call, place.call.arguments
    x, rate = a["input"], a.get("p", 0.5)
    training = a.get("training", True)
    when = "in training" if place.train else "in evaluation"
    fix = f"nn.Dropout({number(rate)}, deterministic=not train)"
    if training and rate > 0:
        yield Proposal("dropout_mode", f"drops nothing {when}", fix, {call.index: left_out})
    rates = [rate, 1 - rate, *(i / 20 for i in range(1, 20)), 1 / 3, 2 / 3, 0.125]
    for mask in place.masks:
        for shaped in fitting_masks(mask, x):
            spread = "element" if mask.size == x.numel() else "channel"
            for other in dict.fromkeys(rates):
                if other >= 1:
                    continue
                for scaled in (True, False):
                    factor = 1 / (1 - other) if scaled else 1.0
                    if not training:
                        kind, says = "dropout_mode", f"drops with rate {number(other)} {when}, PyTorch does not"
                    elif other != rate:
                        kind, says = "dropout_rate", f"drops with rate {number(other)} where PyTorch has {number(rate)}"
                    else:
                        kind, says = "dropout_kind", f"drops each {spread} by itself"
                    says += "" if scaled else ", and does not scale what stays"
                    yield Proposal(kind, says, fix, {call.index: lambda c, a, m=shaped, f=factor: a["input"] * m * f})


def _scaled(place: Place):
    """A number that multiplies, missing or another; a number that is added."""
    call = place.call
    fix = f"the same factor as torch's {call.name}"
    in_attention = any(each.name in ("softmax", "matmul", "bmm") for each in place.consumers()) or call.name in (
        "matmul",
        "bmm",
    )
    kind = "attention_scale" if in_attention and call.output.ndim >= 3 else "factor"
    output = call.output.numpy().astype(np.float64)
    for inner in (0.5, 2.0, 0.1, 10.0, *(call.output.shape[-1] ** power for power in (-0.5, 0.5, -1.0))):
        if call.name in ACTIVATIONS - {"relu", "leaky_relu", "prelu"}:
            yield Proposal(
                kind,
                f"multiplies by a further {number(inner)} before {call.name}",
                fix,
                {call.index: lambda c, a, f=inner: call_again(c, {**a, "input": a["input"] * f})},
            )
    for factor in _factors(place):
        yield Proposal(
            kind,
            f"multiplies by a further {number(factor)} after {call.name}",
            fix,
            {call.index: lambda c, a, f=factor: call_again(c, a) * f},
        )
    for target in place.targets:
        if target.shape != output.shape:
            continue
        difference = target - output
        # A table of constants is the same for all examples.
        table = difference[:1]
        if (
            len(difference) > 1
            and call.name in ("add", "sub")
            and np.abs(difference - table).max() <= 1e-9 * np.abs(output).max()
        ):
            tensor = torch.from_numpy(np.array(table))
            yield Proposal(
                "constants",
                f"has other constants in {call.name}, the same for all examples",
                "the table that PyTorch adds",
                {call.index: lambda c, a, t=tensor: call_again(c, a) + t},
            )
        if np.ptp(difference) <= 1e-9 * max(np.abs(output).max(), 1e-30):
            offset = float(difference.reshape(-1)[0])
            yield Proposal(
                "offset",
                f"adds a further {number(offset)} after {call.name}",
                f"the same terms as torch's {call.name}",
                {call.index: lambda c, a, o=offset: call_again(c, a) + o},
            )


def _factors(place: Place) -> list[float]:
    output = place.call.output.numpy().astype(np.float64)
    found = []
    for target in place.targets:
        if target.shape == output.shape and (square := float((output * output).sum())) > 0:
            factor = float((target * output).sum()) / square
            if np.abs(target - factor * output).max() <= 1e-7 * max(np.abs(target).max(), 1e-30) and factor:
                found.append(factor)
    return found


def _affine(place: Place):
    """Input normalisation with other numbers: one scale and one shift for each channel."""
    call = place.call
    output = call.output.numpy().astype(np.float64)
    if output.ndim < 3 or not all(i < 0 for i in call.inputs):
        return
    for target in place.targets:
        if target.shape != output.shape:
            continue
        flat, wanted = np.moveaxis(output, 1, 0).reshape(output.shape[1], -1), np.moveaxis(target, 1, 0)
        wanted = wanted.reshape(output.shape[1], -1)
        centre = flat - flat.mean(1, keepdims=True)
        scale = (centre * wanted).sum(1) / (centre * centre).sum(1)
        shift = wanted.mean(1) - scale * flat.mean(1)
        if np.abs(scale[:, None] * flat + shift[:, None] - wanted).max() <= 1e-7 * np.abs(wanted).max():
            view = (1, -1, *(1,) * (output.ndim - 2))
            s, t = torch.from_numpy(scale).view(view), torch.from_numpy(shift).view(view)
            words = ", ".join(f"{number(a)} x + {number(b)}" for a, b in zip(scale[:4], shift[:4], strict=True))
            yield Proposal(
                "input_normalisation",
                f"normalises the input with other numbers ({words} of PyTorch's, channel by channel)",
                "the same mean and deviation as PyTorch's",
                {call.index: lambda c, a, s=s, t=t: call_again(c, a) * s + t},
            )


def _precision(place: Place):
    """The port's value, where its type is a half one and torch's operands, rounded to that type, come close to it."""
    call = place.call
    half = {"bfloat16": (torch.bfloat16, 2**-8), "float16": (torch.float16, 2**-11)}
    output = call.output.numpy().astype(np.float64)
    for target, name in zip(place.targets, place.target_types, strict=True):
        if name not in half or target.shape != output.shape:
            continue
        dtype, unit = half[name]
        rounded = {k: v.to(dtype).to(torch.float64) if _floating(v) else v for k, v in call.arguments.items()}
        with torch.no_grad():
            expected = call_again(call, {**rounded, **{n: t.clone() for n, t in call.before.items()}})
        expected = expected[0] if isinstance(expected, tuple) else expected
        left = np.sqrt(np.mean((target - expected.numpy()) ** 2))
        if left <= 8 * unit * np.sqrt(np.mean(output**2)):
            yield Proposal("precision", f"computes in {name} here", "dtype=jnp.float32", {call.index: given(target)})


def _floating(value) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _rounding(place: Place):
    """A difference of the size of float32's rounding, as buffers bring that torch computed in float32."""
    output = place.call.output.numpy().astype(np.float64)
    for target in place.targets:
        scale = np.abs(output).max()
        if target.shape == output.shape and 0 < np.abs(target - output).max() <= 3e-6 * scale:
            says = "differs by no more than the rounding of float32 constants"
            yield Proposal("rounding", says, "nothing", {place.call.index: given(target)}, NOTE)


KINDS = (
    Kind("rounding", "rounding of single precision", "nothing", None, _rounding),
    Kind("gelu_form", "form of GELU", "4.7e-4 in each activation", names("gelu"), _gelu),
    Kind(
        "leaky_slope", "slope of leaky ReLU", "negative activations of another size", names("leaky_relu prelu"), _slope
    ),
    Kind("activation", "another activation", "trains otherwise", ACTIVATIONS, _other_activation),
    Kind(
        "dropout_rate",
        "rate, mode and kind of dropout",
        "regularised more or less; noisy evaluation",
        names("dropout feature_dropout dropout1d dropout2d dropout3d alpha_dropout"),
        _dropout,
    ),
    Kind("left_out", "an operation that the port leaves out", "trains otherwise", None, _left_out),
    Kind("factor", "a number that multiplies or adds", "activations of another size", None, _scaled),
    Kind("input_normalisation", "normalisation of the input", "worse accuracy from converted weights", None, _affine),
    Kind("precision", "half precision in one layer", "noise of 1e-3 and more", None, _precision),
    Kind("added_activation", "an operation that only the port has", "trains otherwise", None, _added),
)
