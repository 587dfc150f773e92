"""Hypotheses about what happens between layers: flattening, concatenation, residuals, slices, attention, recurrence."""

import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F

from cifar_jax.parity.comparison.causes.proposal import FAULT, NOTE, Kind, Place, Proposal, left_out, names, number
from cifar_jax.parity.comparison.layouts import layouts
from cifar_jax.parity.comparison.torch_side import call_again, fitting_masks, scaled_attention

_ADD = names("add")
_ELEMENTWISE = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "relu6": F.relu6,
    "elu": F.elu,
    "hardswish": F.hardswish,
    "leaky_relu": F.leaky_relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "mish": F.mish,
}


def _concatenation(place: Place):
    call = place.call
    tensors = call.arguments["tensors"]
    dim = call.arguments.get("dim", 0)
    function = torch.stack if call.name == "stack" else torch.cat
    fix = f"jnp.concatenate in torch's order, along torch's axis {dim}"
    if len(tensors) <= 5:
        for order in itertools.permutations(range(len(tensors))):
            if order != tuple(range(len(tensors))):
                yield Proposal(
                    "concatenation_order",
                    f"concatenates in the order {order} (0 is PyTorch's first)",
                    fix,
                    {call.index: lambda c, a, o=order: function([a["tensors"][i] for i in o], dim)},
                )
    for axis in range(call.output.ndim):
        if axis != dim % call.output.ndim:
            yield Proposal(
                "concatenation_axis",
                f"concatenates along axis {axis} (in PyTorch's order), PyTorch along {dim}",
                fix,
                {call.index: lambda c, a, axis=axis: function(a["tensors"], axis)},
            )
    for missing in range(len(tensors)):
        yield Proposal(
            "concatenation_part",
            f"has zeros in the place of part {missing} of the concatenation",
            fix,
            {
                call.index: lambda c, a, m=missing: function(
                    [each * 0 if i == m else each for i, each in enumerate(a["tensors"])], dim
                )
            },
        )
    if len(tensors) == 2:
        yield Proposal(
            "concatenation_order",
            "adds what PyTorch concatenates",
            fix,
            {call.index: lambda c, a: a["tensors"][0] + a["tensors"][1]},
        )


def _residual(place: Place):
    """A sum whose activation stands elsewhere, or one of whose terms is missing."""
    call, a = place.call, place.call.arguments
    one, other = a["input"], a.get("other", a.get("1"))
    both = isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
    if not both:
        return
    one_and_other = {"first": lambda a: a["input"], "second": lambda a: a.get("other", a.get("1"))}
    for consumer in place.consumers():
        if consumer.name in _ELEMENTWISE:
            f = lambda x, c=consumer: call_again(c, {**c.arguments, "input": x})  # noqa: E731
            fix = f"nn.{consumer.name}(x + residual): the activation after the sum"
            for words in one_and_other:

                def change(c, arguments, f=f, words=words):
                    x, y = arguments["input"], arguments.get("other", arguments.get("1"))
                    return f(x) + y if words == "first" else x + f(y)

                yield Proposal(
                    "residual_order",
                    f"applies {consumer.name} to the {words} term before the sum, PyTorch to the sum",
                    fix,
                    {call.index: change, consumer.index: left_out},
                )
            yield Proposal(
                "residual_order",
                f"applies {consumer.name} to both terms before the sum, PyTorch to the sum",
                fix,
                {
                    call.index: lambda c, a, f=f: f(a["input"]) + f(a.get("other", a.get("1"))),
                    consumer.index: left_out,
                },
            )
    for producer in place.producers():
        if producer.name in _ELEMENTWISE:
            f = lambda x, c=producer: call_again(c, {**c.arguments, "input": x})  # noqa: E731
            first = (
                place.calls[call.inputs[0]].index == producer.index if call.inputs and call.inputs[0] >= 0 else False
            )

            def moved(c, a, f=f, first=first, producer=producer):
                x, y = a["input"], a.get("other", a.get("1"))
                place = producer.inputs[0]
                raw = c.earlier[place].live if place >= 0 else producer.arguments["input"]
                return f(raw + y) if first else f(x + raw)

            yield Proposal(
                "residual_order",
                f"applies {producer.name} after the sum, PyTorch to one term before it",
                f"nn.{producer.name}(x) + residual",
                {call.index: moved},
            )
    for words, term in one_and_other.items():
        yield Proposal(
            "missing_residual",
            f"takes only the {words} term of the sum",
            "x + residual",
            {call.index: lambda c, a, term=term: term(a) * 1.0},
        )
    yield Proposal(
        "residual_sign",
        "subtracts where PyTorch adds",
        "x + residual",
        {call.index: lambda c, a: a["input"] - a.get("other", a.get("1"))},
    )
    yield Proposal(
        "residual_sign",
        "multiplies where PyTorch adds",
        "x + residual",
        {call.index: lambda c, a: a["input"] * a.get("other", a.get("1"))},
    )
    # A residual that starts elsewhere: any earlier value of the same shape instead of one of the terms.
    inputs = set(call.inputs)
    for earlier in reversed(place.calls[: call.index]):
        if (
            earlier.output.shape == call.output.shape
            and earlier.index not in inputs
            and earlier.output.is_floating_point()
        ):
            for words in one_and_other:

                def elsewhere(c, a, index=earlier.index, words=words):
                    x, y, value = a["input"], a.get("other", a.get("1")), c.earlier[index].live
                    return value + y if words == "first" else x + value

                yield Proposal(
                    "residual_source",
                    f"adds the result of {earlier.name} in {earlier.module or 'the model'} instead of the {words} term",
                    f"the term that PyTorch adds at {call.source}",
                    {call.index: elsewhere},
                )


def _added_residual(place: Place):
    """A term that only the port adds: an earlier value of the same shape."""
    call = place.call
    for earlier in reversed(place.calls[: call.index]):
        if earlier.output.shape == call.output.shape and earlier.output.is_floating_point():
            yield Proposal(
                "added_residual",
                f"adds the result of {earlier.name} in {earlier.module or 'the model'}, which PyTorch does not",
                "no sum here",
                {call.index: lambda c, a, i=earlier.index: call_again(c, a) + c.earlier[i].live},
            )
    if (first := call.arguments.get("input")) is not None and getattr(first, "shape", None) == call.output.shape:
        yield Proposal(
            "added_residual",
            "adds the layer's input to its result, which PyTorch does not",
            "no sum here",
            {call.index: lambda c, a: call_again(c, a) + a["input"]},
        )


def _other_source(place: Place):
    """A layer that takes an earlier value than PyTorch's does: what came between is left out or comes later."""
    call = place.call
    first = next((name for name, value in call.arguments.items() if isinstance(value, torch.Tensor)), None)
    if first is None:
        return
    shape = call.arguments[first].shape
    own = {i for i in call.inputs}
    for earlier in reversed(place.calls[: call.index]):
        if (
            earlier.index not in own
            and earlier.output.ndim == len(shape)
            and earlier.output.shape[-1:] == shape[-1:]
            and earlier.output.dtype == call.arguments[first].dtype
        ):
            between = [each for each in place.calls[earlier.index + 1 : call.index] if each.index in own]
            skipped = between[0] if len(between) == 1 and earlier.index in between[0].inputs else None
            kind = "left_out" if skipped is not None else "other_input"
            own_name = place.calls[call.inputs[0]].name if call.inputs[0] >= 0 else "the input"
            where = earlier.module or "the model"
            says = f"takes the result of {earlier.name} in {where} where PyTorch takes that of {own_name}"
            if skipped is not None:
                says = f"leaves out {skipped.name} ({skipped.module or 'the model'}) before {call.name}"
            yield Proposal(
                kind,
                says,
                f"the value that PyTorch takes at {call.source}",
                {call.index: lambda c, a, i=earlier.index: call_again(c, {**a, first: c.earlier[i].live})},
            )


_OPERATIONS = {"add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "maximum": torch.maximum}


def _operation(place: Place):
    """Another operation on the same two values."""
    call, a = place.call, place.call.arguments
    for name, function in _OPERATIONS.items():
        if name != call.name and all(isinstance(a.get(slot), torch.Tensor) for slot in ("input", "other")):
            yield Proposal(
                "operation",
                f"has {name} where PyTorch has {call.name}",
                f"jnp.{call.name.replace('mul', 'multiply').replace('div', 'divide').replace('sub', 'subtract')}",
                {call.index: lambda c, a, f=function: f(a["input"], a["other"])},
            )


def _slice(place: Place):
    """Another entry of an axis: the first step of a sequence, not the last; another token."""
    call, a = place.call, place.call.arguments
    x = next(value for value in a.values() if isinstance(value, torch.Tensor))
    for axis in range(x.ndim):
        if x.ndim == call.output.ndim + 1 and x.shape[:axis] + x.shape[axis + 1 :] == call.output.shape:
            for index, words in ((0, "first"), (x.shape[axis] - 1, "last"), (1, "second")):
                if index < x.shape[axis]:
                    yield Proposal(
                        "sequence_entry",
                        f"takes the {words} entry of axis {axis}",
                        "the index that PyTorch takes",
                        {call.index: lambda c, a, axis=axis, i=index: _tensor(a).select(axis, i) * 1.0},
                    )
            for words, function in (("mean", torch.mean), ("largest", torch.amax), ("sum", torch.sum)):
                yield Proposal(
                    "sequence_entry",
                    f"takes the {words} over axis {axis}",
                    "the index that PyTorch takes",
                    {call.index: lambda c, a, axis=axis, f=function: f(_tensor(a), axis)},
                )
    if x.ndim == call.output.ndim:
        for axis in range(x.ndim):
            width = call.output.shape[axis]
            rest_alike = (
                x.shape[:axis] + x.shape[axis + 1 :] == call.output.shape[:axis] + call.output.shape[axis + 1 :]
            )
            if width < x.shape[axis] and rest_alike:
                for start in range(0, min(x.shape[axis] - width, 8) + 1):
                    yield Proposal(
                        "sequence_entry",
                        f"takes {width} entries of axis {axis} from the {start}th on",
                        "the slice that PyTorch takes",
                        {call.index: lambda c, a, axis=axis, s=start, w=width: _tensor(a).narrow(axis, s, w) * 1.0},
                    )
                yield Proposal(
                    "sequence_entry",
                    f"takes the last {width} entries of axis {axis}",
                    "the slice that PyTorch takes",
                    {call.index: lambda c, a, axis=axis, w=width: _tensor(a).narrow(axis, x.shape[axis] - w, w) * 1.0},
                )


def _tensor(arguments):
    return next(value for value in arguments.values() if isinstance(value, torch.Tensor))


def _arrangement(place: Place):
    """The same elements in another order: a reshape of channels-last values, heads, pixel and channel shuffles."""
    call, a = place.call, place.call.arguments
    x = _tensor(a)
    shape = call.output.shape
    sources = [("", x)]
    if x.ndim in (3, 4, 5):
        sources.append(("of the channels-last array ", torch.movedim(x, 1, -1)))
    for words, source in sources:
        if source.numel() == call.output.numel():
            for order in itertools.permutations(range(source.ndim)):
                yield Proposal(
                    "flatten_order",
                    f"arranges the elements {words}with the axes in the order {order} before the reshape",
                    f"jnp.transpose to PyTorch's order before the reshape, as at {call.source}",
                    {call.index: lambda c, a, o=order, last=bool(words): _reshaped(_tensor(a), o, last, shape)},
                )
    if call.name in ("pixel_shuffle", "pixel_unshuffle"):
        factor = a.get("upscale_factor", a.get("downscale_factor", 2))
        for order in itertools.permutations(range(3)):
            yield Proposal(
                "pixel_shuffle",
                f"shuffles pixels with (channels, rows, columns) in the order {order}",
                "x.reshape(n, h, w, c, r, r) with channels first, as PyTorch",
                {call.index: lambda c, a, o=order: _shuffled(c, _tensor(a), factor, o)},
            )


def _reshaped(x, order, last, shape):
    source = torch.movedim(x, 1, -1) if last else x
    return source.permute(order).reshape(shape)


def _shuffled(call, x, factor, order):
    n, channels, height, width = x.shape
    if call.name == "pixel_unshuffle":
        parts = x.reshape(n, channels, height // factor, factor, width // factor, factor)
        parts = parts.permute(0, *(1 + i for i in (0, 2, 4)), 2, 4)
        picked = [parts.permute(0, 1, 4, 5, 2, 3), order]
        y = picked[0].permute(0, *(1 + i for i in order), 4, 5)
        return y.reshape(n, channels * factor**2, height // factor, width // factor)
    sizes = [channels // factor**2, factor, factor]
    held = [sizes[i] for i in order]
    parts = x.reshape(n, *held, height, width)
    back = [1 + order.index(i) for i in range(3)]
    return parts.permute(0, back[0], 4, back[1], 5, back[2]).reshape(n, sizes[0], height * factor, width * factor)


def _attention(place: Place):
    call, a = place.call, place.call.arguments
    width, length = a["query"].shape[-1], a["key"].shape[-2]
    model = width * (a["query"].shape[1] if a["query"].ndim > 3 else 1)
    fix = "scores / jnp.sqrt(head_dim)"

    def variant(**changed):
        return {call.index: lambda c, arguments: scaled_attention(**{**arguments, **changed})}

    scales = {
        "does not scale the scores": 1.0,
        f"divides the scores by {width}, not by its root": 1 / width,
        "divides the scores by the root of the model's width, not of a head's": 1 / math.sqrt(model),
        "multiplies the scores by the root of the width": math.sqrt(width),
        "scales the scores twice": 1 / width,
        "divides the scores by the root of the length": 1 / math.sqrt(length),
    }
    for says, scale in scales.items():
        yield Proposal("attention_scale", says, fix, variant(scale=scale))
    mask = a.get("attn_mask")
    has_mask = mask is not None or a.get("is_causal")
    square = a["query"].shape[-2] == length
    if has_mask:
        yield Proposal("attention_mask", "masks nothing", "mask=...", variant(attn_mask=None, is_causal=False))
    if square and not a.get("is_causal"):
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        yield Proposal(
            "attention_mask",
            "masks what comes later (causal), PyTorch does not",
            "mask=None",
            variant(attn_mask=causal),
        )
    if square:
        ones = torch.ones(length, length, dtype=torch.bool)
        for says, other in (
            ("masks what came before, not what comes later", ones.triu()),
            ("masks a step itself too", ones.tril(-1)),
            ("lets a step see the next one", ones.tril(1)),
        ):
            yield Proposal("attention_mask", says, "nn.make_causal_mask(x)", variant(attn_mask=other, is_causal=False))
    if mask is not None:
        inverted = ~mask if mask.dtype == torch.bool else torch.where(torch.isinf(mask), 0.0, -math.inf)
        yield Proposal(
            "attention_mask",
            "masks what PyTorch sees, and sees what it masks",
            "Flax's masks say where to look",
            variant(attn_mask=inverted),
        )
        if mask.dtype != torch.bool:
            scaled = {
                "adds the mask before it scales": mask / math.sqrt(width),
                "masks with -1e9": mask.clamp(min=-1e9),
                "masks with -1e4": mask.clamp(min=-1e4),
            }
            for says, other in scaled.items():
                yield Proposal("attention_mask", says, "jnp.where(mask, scores, -jnp.inf)", variant(attn_mask=other))
    yield Proposal(
        "softmax_axis",
        "takes the softmax over the queries, not over the keys",
        "nn.softmax(scores, axis=-1)",
        variant(axis=-2),
    )
    for order in itertools.permutations(("query", "key", "value")):
        if order != ("query", "key", "value"):
            roles = dict(zip(("query", "key", "value"), order, strict=True))
            yield Proposal(
                "attention_packing",
                f"takes {', '.join(f'{v} for {k}' for k, v in roles.items() if k != v)}",
                "jnp.split(qkv, 3, axis=-1) in the order query, key, value",
                {call.index: lambda c, a, r=roles: scaled_attention(**{**a, **{k: a[v] for k, v in r.items()}})},
            )
    if a.get("dropout_p", 0.0) > 0:
        yield from _attention_dropout(place)
    if a["query"].ndim == 4:
        yield from _heads(place)


def _attention_dropout(place: Place):
    """Dropout of attention with one mask for several heads or examples, or with another rate."""
    call, a = place.call, place.call.arguments
    scores = a["query"] @ a["key"].transpose(-1, -2)
    given = a["dropout_p"]
    for mask in place.masks:
        if mask.shape[-2:] != scores.shape[-2:]:
            continue
        for shaped in fitting_masks(mask, scores):
            for rate in dict.fromkeys([given, *(i / 20 for i in range(1, 20))]):
                whole = mask.size == scores.numel()
                says = "draws one mask of dropout for all heads and examples, PyTorch one for each"
                if rate != given:
                    says = f"drops attention with rate {number(rate)} where PyTorch has {number(given)}"
                yield Proposal(
                    "dropout_rate" if rate != given else "dropout_kind",
                    says,
                    f"nn.MultiHeadDotProductAttention(dropout_rate={number(given)}, broadcast_dropout=False)",
                    {
                        call.index: lambda c, a, m=shaped, r=rate: scaled_attention(
                            **{**a, "dropout_p": 0.0}, weight=m / (1 - r)
                        )
                    },
                    FAULT if whole or rate != given else NOTE,
                )


def _heads(place: Place):
    """Heads cut from the width with a step, not side by side."""
    call = place.call

    def apart(x):
        n, heads, length, width = x.shape
        return x.transpose(1, 2).reshape(n, length, heads * width).reshape(n, length, width, heads).permute(0, 3, 1, 2)

    def together(y):
        n, heads, length, width = y.shape
        return y.permute(0, 2, 3, 1).reshape(n, length, heads * width).reshape(n, length, heads, width).transpose(1, 2)

    def flat(y):
        n, heads, length, width = y.shape
        return y.reshape(n, length, heads, width).transpose(1, 2)

    def change(c, arguments, back):
        q, k, v = (apart(arguments[name]) for name in ("query", "key", "value"))
        return back(scaled_attention(**{**arguments, "query": q, "key": k, "value": v}))

    for back in (together, lambda y: y):
        yield Proposal(
            "attention_heads",
            "cuts heads with a step: reshape to (width, heads)",
            "x.reshape(n, length, heads, width)",
            {call.index: lambda c, a, back=back: change(c, a, back)},
        )
    yield Proposal(
        "attention_heads",
        "puts the heads together without the transposition before",
        "y.transpose(0, 2, 1, 3).reshape(n, length, heads * width)",
        {call.index: lambda c, a: flat(call_again(c, a))},
    )

    def raw(c, a):
        def cut(x):
            n, heads, length, width = x.shape
            return x.transpose(1, 2).reshape(n, length, heads * width).reshape(n, heads, length, width)

        return scaled_attention(**{**a, **{name: cut(a[name]) for name in ("query", "key", "value")}})

    yield Proposal(
        "attention_heads",
        "reshapes to (heads, length, width) without a transposition",
        "x.reshape(n, length, heads, width).transpose(0, 2, 1, 3)",
        {call.index: raw},
    )


def cell(
    name, x, weights, *, reverse=False, forget=0.0, state=None, after=True, order=None, squash=torch.tanh,
    gate=torch.sigmoid,
):  # fmt: skip
    """One direction of an LSTM or GRU, step by step.

    Args:
      name: "lstm", "gru", "rnn_tanh" or "rnn_relu".
      x: `[length, batch, width]`.
      weights: of the input and of the state, and two biases or none.
      forget: added to the LSTM's forget gate.
      squash, gate: the activations of new values and of gates.
      after: GRU: whether the reset gate acts after the state's product, as in torch.
    """
    w_ih, w_hh, *biases = weights
    b_ih, b_hh = biases if biases else (torch.zeros(w_ih.shape[0], dtype=x.dtype),) * 2
    h = torch.zeros(x.shape[1], w_hh.shape[1], dtype=x.dtype)
    c = torch.zeros_like(h)
    if state is not None:
        h, c = state
    results = []
    for step in reversed(range(len(x))) if reverse else range(len(x)):
        if name == "lstm":
            i, f, g, o = (F.linear(x[step], w_ih, b_ih) + F.linear(h, w_hh, b_hh)).chunk(4, -1)
            c = gate(f + forget) * c + gate(i) * squash(g)
            h = gate(o) * squash(c)
        elif name == "gru":
            xr, xz, xn = F.linear(x[step], w_ih, b_ih).chunk(3, -1)
            if after:
                hr, hz, hn = F.linear(h, w_hh, b_hh).chunk(3, -1)
                r, z = gate(xr + hr), gate(xz + hz)
                n = squash(xn + r * hn)
            else:
                (wr, wz, wn), (br, bz, bn) = w_hh.chunk(3), b_hh.chunk(3)
                r, z = gate(xr + F.linear(h, wr, br)), gate(xz + F.linear(h, wz, bz))
                n = squash(xn + F.linear(r * h, wn, bn))
            h = z * n + (1 - z) * h if order == "swapped" else (1 - z) * n + z * h
        else:
            activation = squash if name == "rnn_tanh" else torch.relu
            h = activation(F.linear(x[step], w_ih, b_ih) + F.linear(h, w_hh, b_hh))
        results.append(h)
    return torch.stack(results[::-1] if reverse else results), h, c


def recurrent(name, a, *, variants=None, swap_directions=False, both_forward=False, layers=None, use_state=True):
    """`torch.lstm` and its kin written out; `variants` are arguments of `cell`."""
    variants = variants or {}
    x = a["input"].transpose(0, 1) if a["batch_first"] else a["input"]
    given = a.get("hx") if use_state else None
    weights, biases = list(a["weights"]), a["has_biases"]
    per_cell = 4 if biases else 2
    directions = 2 if a["bidirectional"] else 1
    last_h, last_c = [], []
    for layer in range(a["num_layers"] if layers is None else layers):
        results = []
        for direction in range(directions):
            start = per_cell * (layer * directions + direction)
            reverse = (direction == 1 and not both_forward) != variants.get("turned", False)
            state = _initial_state(name, given, layer * directions + direction)
            y, h, c = cell(
                name,
                x,
                weights[start : start + per_cell],
                reverse=reverse,
                state=state,
                **{key: value for key, value in variants.items() if key != "turned"},
            )
            results.append(y)
            last_h.append(h)
            last_c.append(c)
        if swap_directions:
            results.reverse()
        x = torch.cat(results, -1)
    y = x.transpose(0, 1) if a["batch_first"] else x
    h = torch.stack(last_h)
    return (y, h, torch.stack(last_c)) if name == "lstm" else (y, h)


def _initial_state(name, given, place):
    """The state of one layer and direction from `hx`; None for zeros."""
    if given is None:
        return None
    return (given[0][place], given[1][place]) if name == "lstm" else (given[place], torch.zeros_like(given[place]))


def _recurrent(place: Place):
    call = place.call
    forgets = (1.0, -1.0) if call.name == "lstm" else ()
    options = [
        (f"adds {number(value)} to the forget gate", {"variants": {"forget": value}}, "recurrent_gates")
        for value in forgets
    ]
    if call.name == "gru":
        options += [
            (
                "applies the reset gate before the state's product, PyTorch after it",
                {"variants": {"after": False}},
                "recurrent_gates",
            ),
            ("exchanges the update gate's two terms", {"variants": {"order": "swapped"}}, "recurrent_gates"),
        ]
    options += [("runs the sequence backwards", {"variants": {"turned": True}}, "recurrent_direction")]
    if call.arguments.get("bidirectional"):
        options += [("puts the backward direction first", {"swap_directions": True}, "recurrent_direction")]
    for layers in range(1, call.arguments.get("num_layers", 1)):
        options.append(
            (
                f"has {layers} layers where PyTorch has {call.arguments['num_layers']}",
                {"layers": layers},
                "recurrent_layers",
            )
        )
    for words, function in {"relu": torch.relu, "gelu": F.gelu, "silu": F.silu, "the identity": lambda x: x}.items():
        options.append((f"squashes with {words}, not tanh", {"variants": {"squash": function}}, "recurrent_activation"))
    options.append(("starts from a state of zeros", {"use_state": False}, "recurrent_state"))
    options.append(("gates with hard_sigmoid", {"variants": {"gate": F.hardsigmoid}}, "recurrent_activation"))
    if call.arguments.get("bidirectional"):
        options.append(("runs both directions forward", {"both_forward": True}, "recurrent_direction"))
    for says, keywords, kind in options:
        yield Proposal(
            kind,
            says,
            "nn.RNN with torch's gates and direction",
            {call.index: lambda c, a, k=keywords: recurrent(c.name, a, **k)},
        )
    if not call.arguments.get("batch_first"):
        yield Proposal(
            "recurrent_axis",
            "runs over the batch axis as if it were time",
            "nn.RNN(time_major=True)",
            {call.index: lambda c, a: _turned(c, a)},
        )
    else:
        yield Proposal(
            "recurrent_axis",
            "runs over the batch axis as if it were time",
            "nn.RNN(time_major=False)",
            {call.index: lambda c, a: _turned(c, a)},
        )


def _turned(call, a):
    if not call.arguments.get("batch_first"):
        return recurrent(call.name, {**a, "batch_first": True})
    return recurrent(call.name, {**a, "batch_first": False})


def _embedding(place: Place):
    call, a = place.call, place.call.arguments
    width = a["weight"].shape[1]
    padding = a.get("padding_idx")
    for factor, words in (
        (math.sqrt(width), "the root of the width"),
        (1 / math.sqrt(width), "one over the root of the width"),
    ):
        yield Proposal(
            "embedding_scale",
            f"multiplies the embedding by {words}",
            "nn.Embed(...)(tokens)",
            {call.index: lambda c, a, f=factor: call_again(c, a) * f},
        )
    if padding is not None:
        yield Proposal(
            "embedding_padding",
            "gives zeros for the padding token, PyTorch the table's row",
            "nn.Embed(...)(tokens)",
            {call.index: lambda c, a: call_again(c, a) * (a["input"] != padding)[..., None]},
        )
    for shift in (1, -1):
        yield Proposal(
            "embedding_index",
            f"looks up the token's number {'plus' if shift > 0 else 'minus'} 1",
            "nn.Embed(...)(tokens)",
            {call.index: lambda c, a, s=shift: F.embedding((a["input"] + s) % a["weight"].shape[0], a["weight"])},
        )


def _swapped_product(place: Place):
    call, a = place.call, place.call.arguments
    one, other = a["input"], a["other"]
    if not (isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)):
        return
    for says, function in (
        ("exchanges the two factors", lambda x, y: y @ x),
        ("transposes the first factor", lambda x, y: x.transpose(-1, -2) @ y),
        ("transposes the second factor", lambda x, y: x @ y.transpose(-1, -2)),
    ):
        yield Proposal(
            "product",
            says,
            "the product as PyTorch writes it",
            {call.index: lambda c, a, f=function: f(a["input"], a["other"])},
        )


def _tied(place: Place):
    """Weights that only one side shares between two layers."""
    call = place.call
    for slot, name in call.parameters.items():
        weight = call.arguments.get(slot)
        if not isinstance(weight, torch.Tensor):
            continue
        kind = {"linear": "linear", "embedding": "embedding"}.get(call.name, call.name[:-2])
        for path, array in place.arrays.items():
            for layout in layouts(kind if weight.ndim > 1 else "plain", tuple(weight.shape), array.shape):
                other = torch.from_numpy(np.array(layout.to_torch(array)))
                yield Proposal(
                    "tied_weights",
                    f"has weights of its own here ({path}); PyTorch shares {name} with another layer",
                    "use the same submodule twice, or embedding.attend(x)",
                    {call.index: lambda c, a, slot=slot, w=other: call_again(c, {**a, slot: w})},
                )
        for other_name, array in place.tensors.items():
            if other_name != name and array.shape == tuple(weight.shape):
                other = torch.from_numpy(array)
                yield Proposal(
                    "tied_weights",
                    f"shares the weights of {other_name} here; PyTorch has {name} of its own",
                    "a submodule of its own",
                    {call.index: lambda c, a, slot=slot, w=other: call_again(c, {**a, slot: w})},
                )


_VIEWS = names(
    "flatten reshape view permute transpose pixel_shuffle pixel_unshuffle unflatten movedim swapaxes roll flip"
)

KINDS = (
    Kind(
        "concatenation_order",
        "order of a concatenation",
        "converted weights meet other channels",
        names("cat stack"),
        _concatenation,
    ),
    Kind("residual_order", "a sum of branches", "trains otherwise", _ADD, _residual),
    Kind("operation", "an operation on two values", "trains otherwise", names("add sub mul div"), _operation),
    Kind(
        "sequence_entry",
        "which entry of a sequence",
        "the classifier sees another step",
        names("__getitem__ select narrow"),
        _slice,
    ),
    Kind(
        "attention_scale",
        "attention",
        "attention too flat or too sharp",
        names("scaled_dot_product_attention"),
        _attention,
    ),
    Kind("recurrent_gates", "recurrent layers", "another memory", names("lstm gru rnn_tanh rnn_relu"), _recurrent),
    Kind("embedding_scale", "embeddings", "embeddings of another size", names("embedding"), _embedding),
    Kind("product", "a matrix product", "trains otherwise", names("matmul bmm"), _swapped_product),
    Kind(
        "flatten_order", "order of elements in a reshape", "converted weights meet other elements", _VIEWS, _arrangement
    ),
    Kind(
        "tied_weights",
        "weights that one side shares",
        "too many or too few parameters",
        names("linear embedding conv1d conv2d conv3d layer_norm batch_norm"),
        _tied,
    ),
    Kind("other_input", "another input of a layer", "trains otherwise", None, _other_source),
    Kind("added_residual", "a sum that only the port has", "trains otherwise", None, _added_residual),
)
