"""Hypotheses about convolutions, transposed convolutions and linear layers."""

import itertools

import torch
import torch.nn.functional as F

from cifar_jax.parity.comparison.causes.proposal import Kind, Place, Proposal, names, pair, with_arguments
from cifar_jax.parity.comparison.torch_side import call_again

CONVOLUTIONS = names("conv1d conv2d conv3d")
TRANSPOSED = names("conv_transpose1d conv_transpose2d conv_transpose3d")


def same_padding(size: int, window: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """Rows that XLA's "SAME" adds before and after an axis of this size."""
    reach = (window - 1) * dilation + 1
    total = max((-(-size // stride) - 1) * stride + reach - size, 0)
    return total // 2, total - total // 2


def _padded(low_high, mode="constant"):
    """The convolution with other numbers of rows before and after each axis."""

    def change(call, arguments):
        sides = [n for low, high in reversed(low_high) for n in (low, high)]
        x = F.pad(arguments["input"], sides, mode=mode)
        return call_again(call, {**arguments, "input": x, "padding": 0})

    return change


def _padding(place: Place):
    call, a = place.call, place.call.arguments
    x, weight = a["input"], a["weight"]
    rank = weight.ndim - 2
    window, stride, dilation = weight.shape[2:], pair(a.get("stride", 1), rank), pair(a.get("dilation", 1), rank)
    given = a.get("padding", 0)
    own = _own_padding(given, window, dilation, rank)
    fix = f"nn.Conv(..., padding={tuple((n, n) for n in own) if rank > 1 else ((own[0], own[0]),)})"
    same = tuple(same_padding(*each) for each in zip(x.shape[2:], window, stride, dilation, strict=True))
    if same != tuple((n, n) for n in own):
        yield Proposal(
            "padding",
            f'pads as "SAME" does, {same}, where PyTorch pads {own} on both sides',
            fix,
            {call.index: _padded(same)},
        )
        swapped = tuple((high, low) for low, high in same)
        yield Proposal(
            "padding", f"pads {swapped} where PyTorch pads {own} on both sides", fix, {call.index: _padded(swapped)}
        )
    reach = max(max(window) * max(dilation), max(own) + 2)
    for amount in range(reach + 1):
        sides = tuple((amount, amount) for _ in own)
        if tuple(own) != (amount,) * rank:
            words = '"VALID"' if amount == 0 else str(amount)
            yield Proposal("padding", f"pads {words} where PyTorch pads {own}", fix, {call.index: _padded(sides)})
    totals = [2 * n for n in own]
    for low in range(max(totals, default=0) + 1):
        sides = tuple((min(low, total), total - min(low, total)) for total in totals)
        if any(a != b for a, b in sides):
            says = f"pads {sides}, not the same on both sides; PyTorch pads {own}"
            yield Proposal("padding", says, fix, {call.index: _padded(sides)})
    if any(own):
        full = (
            [(2 * n, 0) for n in own],
            [(0, 2 * n) for n in own],
            [(n + 1, n) for n in own],
            [(n, n + 1) for n in own],
            [(n, n - 1) for n in own if n] or own_pairs(own),
            [(n - 1, n) for n in own if n] or own_pairs(own),
        )
        for sides in full:
            if len(sides) == rank:
                yield Proposal(
                    "padding",
                    f"pads {tuple(sides)}, not the same on both sides; PyTorch pads {own}",
                    fix,
                    {call.index: _padded(sides)},
                )
        for mode in ("circular", "reflect", "replicate"):
            yield Proposal(
                "padding_mode",
                f"pads with {mode} values where PyTorch pads with zeros",
                fix,
                {call.index: _padded([(n, n) for n in own], mode)},
            )


def own_pairs(own):
    """The same amount on both sides of each axis."""
    return [(n, n) for n in own]


def _own_padding(given, window, dilation, rank) -> tuple[int, ...]:
    if given == "valid":
        return (0,) * rank
    if given == "same":
        return tuple((k - 1) * d // 2 for k, d in zip(window, dilation, strict=True))
    return pair(given, rank)


_PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def _pad_call(place: Place):
    """An explicit `F.pad`, in front of a convolution."""
    call, a = place.call, place.call.arguments
    given = a.get("mode", "constant")
    for mode in ("constant", "reflect", "replicate", "circular"):
        if mode != given:
            yield Proposal(
                "padding_mode",
                f"pads with {mode} values where PyTorch pads with {given}",
                f"jnp.pad(x, ..., mode={_PAD_MODES[given]!r})",
                {call.index: lambda c, a, mode=mode: F.pad(a["input"], a["pad"], mode=mode)},
            )
    sides = list(a["pad"])
    # Padding on one side only has the same elements on either side; the side that PyTorch pads comes first.
    amounts = itertools.product(range(max(sides) + 2), repeat=2)
    for low, high in sorted(amounts, key=lambda each: ((each[0] == 0) != (sides[0] == 0), each)):
        others = [n for own in range(0, len(sides), 2) for n in ((low, high) if any(sides[own : own + 2]) else (0, 0))]
        if others != sides:
            yield Proposal(
                "padding",
                f"pads {others} where PyTorch pads {sides} (last axis first)",
                "jnp.pad with PyTorch's amounts",
                {call.index: lambda c, a, others=others: F.pad(a["input"], others, mode=given)},
            )
    exchanged = [n for i in range(0, len(sides), 2) for n in (sides[i + 1], sides[i])]
    yield Proposal(
        "padding",
        f"pads {exchanged} where PyTorch pads {sides} (last axis first)",
        "jnp.pad takes the first axis first",
        {call.index: lambda c, a: F.pad(a["input"], exchanged, mode=given)},
    )
    pairs = [tuple(sides[i : i + 2]) for i in range(0, len(sides), 2)]
    turned = [n for each in reversed(pairs) for n in each]
    yield Proposal(
        "padding",
        "pads the axes in the reverse order",
        "jnp.pad takes the first axis first",
        {call.index: lambda c, a: F.pad(a["input"], turned, mode=given)},
    )


def _geometry(place: Place):
    call, a = place.call, place.call.arguments
    rank = a["weight"].ndim - 2
    window = a["weight"].shape[2:]
    stride, dilation = pair(a.get("stride", 1), rank), pair(a.get("dilation", 1), rank)
    x = a["input"]
    for value in (1, 2, 3, 4):
        other = (value,) * rank
        if other != stride:
            fix = f"nn.Conv(..., strides={stride})"
            says = f"moves by {value} where PyTorch's stride is {stride}"
            yield Proposal("stride", says, fix, {call.index: with_arguments(stride=other)})
            same = tuple(same_padding(*e) for e in zip(x.shape[2:], window, other, dilation, strict=True))
            yield Proposal(
                "stride",
                says + ', and pads as "SAME" does',
                fix,
                {call.index: lambda c, a, other=other, same=same: _padded(same)(c, {**a, "stride": other})},
            )
        if other != dilation:
            fix = f"nn.Conv(..., kernel_dilation={dilation})"
            says = f"dilates by {value} where PyTorch's dilation is {dilation}"
            yield Proposal("dilation", says, fix, {call.index: with_arguments(dilation=other)})
            kept = tuple(same_padding(*e) for e in zip(x.shape[2:], window, stride, other, strict=True))
            yield Proposal(
                "dilation",
                says + ", and pads as much as that takes",
                fix,
                {call.index: lambda c, a, other=other, kept=kept: _padded(kept)(c, {**a, "dilation": other})},
            )
    if rank > 1 and len(set(stride)) > 1:
        yield Proposal(
            "stride",
            "exchanges the strides of height and width",
            f"strides={stride}",
            {call.index: with_arguments(stride=stride[::-1])},
        )
    groups = a.get("groups", 1)
    if groups > 1:

        def regrouped(c, a):
            parts = torch.arange(x.shape[1]).reshape(groups, -1).T.reshape(-1)
            return call_again(c, {**a, "input": a["input"][:, parts]})

        yield Proposal(
            "groups",
            "takes the channels of a group with a step, not side by side",
            f"feature_group_count={groups}",
            {call.index: regrouped},
        )


def _bias(place: Place):
    call, a = place.call, place.call.arguments
    if a.get("bias") is not None:
        yield Proposal("missing_bias", "leaves out the bias", "use_bias=True", {call.index: with_arguments(bias=None)})
        yield Proposal(
            "missing_bias", "adds the bias twice", "use_bias=True", {call.index: with_arguments(bias=a["bias"] * 2)}
        )
        return
    out = a["weight"].shape[1] * a.get("groups", 1) if call.name in TRANSPOSED else a["weight"].shape[0]
    for path, array in place.arrays.items():
        if array.shape == (out,) or (array.size == out and array.ndim == 2):
            extra = torch.from_numpy(array.reshape(-1).copy())
            yield Proposal(
                "added_bias",
                f"adds a bias ({path}) where PyTorch has none",
                "use_bias=False",
                {call.index: lambda c, a, extra=extra: call_again(c, {**a, "bias": extra})},
            )


def _transposed(place: Place):
    """A transposed convolution with its rows elsewhere: `SAME` and PyTorch's padding differ by a shift."""
    call, a = place.call, place.call.arguments
    rank = a["weight"].ndim - 2
    stride, dilation = pair(a.get("stride", 1), rank), pair(a.get("dilation", 1), rank)
    window = a["weight"].shape[2:]
    padding, extra = pair(a.get("padding", 0), rank), pair(a.get("output_padding", 0), rank)
    reach = tuple((k - 1) * d for k, d in zip(window, dilation, strict=True))
    own = tuple((r - p, r - p + e) for r, p, e in zip(reach, padding, extra, strict=True))
    fix = f"nn.ConvTranspose(..., padding={own}, transpose_kernel=True)"
    for low, high in itertools.product(range(-3, 4), repeat=2):
        sides = tuple((a_ + low, b + high) for a_, b in own)
        if (low, high) == (0, 0) or min(min(each) for each in sides) < 0:
            continue

        def change(c, a, sides=sides):
            full = call_again(c, {**a, "padding": 0, "output_padding": 0})
            # `full` has `reach` rows on both sides; cut or add to have `sides` of them.
            cuts = [n for (lo, hi), r in reversed(list(zip(sides, reach, strict=True))) for n in (lo - r, hi - r)]
            y = full if a.get("bias") is None else full - a["bias"].view(1, -1, *(1,) * rank)
            y = F.pad(y, cuts)
            return y if a.get("bias") is None else y + a["bias"].view(1, -1, *(1,) * rank)

        yield Proposal(
            "transposed_padding",
            f"puts {sides} rows around the dilated input where PyTorch puts {own}",
            fix,
            {call.index: change},
        )
    for value in (1, 2, 3, 4):
        if (value,) * rank != stride:
            yield Proposal(
                "stride",
                f"moves by {value} where PyTorch's stride is {stride}",
                f"strides={stride}",
                {call.index: with_arguments(stride=value)},
            )


def _kernel(place: Place):
    call, a = place.call, place.call.arguments
    weight = a["weight"]
    if call.name == "linear":
        if weight.shape[0] == weight.shape[1]:
            yield Proposal(
                "kernel_transposed",
                "multiplies by the transposed matrix",
                "x @ kernel, with kernel [in, out]",
                {call.index: lambda c, a: call_again(c, {**a, "weight": a["weight"].t()})},
            )
        return
    if max(weight.shape[2:]) > 1:
        axes = tuple(range(2, weight.ndim))
        yield Proposal(
            "kernel_flip",
            "flips the kernel's window",
            "nn.ConvTranspose(transpose_kernel=True); a convolution does not flip",
            {call.index: lambda c, a: call_again(c, {**a, "weight": a["weight"].flip(axes)})},
        )


KINDS = (
    Kind("padding", "padding of a convolution", "shifted or clipped features", CONVOLUTIONS, _padding),
    Kind("padding", "an explicit padding", "shifted features", names("pad"), _pad_call),
    Kind(
        "stride",
        "stride, dilation and groups",
        "features of another size, or of another reach",
        CONVOLUTIONS,
        _geometry,
    ),
    Kind(
        "missing_bias",
        "missing or added bias",
        "an offset in each channel",
        CONVOLUTIONS | TRANSPOSED | {"linear"},
        _bias,
    ),
    Kind(
        "transposed_padding",
        "padding of a transposed convolution",
        "images shifted by a pixel",
        TRANSPOSED,
        _transposed,
    ),
    Kind(
        "kernel_flip",
        "kernel flipped or transposed",
        "noise instead of images, from converted weights",
        CONVOLUTIONS | TRANSPOSED | {"linear"},
        _kernel,
    ),
)
