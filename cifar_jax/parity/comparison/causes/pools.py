"""Hypotheses about pooling and resizing."""

import itertools

import torch
import torch.nn.functional as F

from cifar_jax.parity.comparison.causes.convolutions import same_padding
from cifar_jax.parity.comparison.causes.proposal import Kind, Place, Proposal, names, pair
from cifar_jax.parity.comparison.causes.resize import resize

_WINDOWS = names("max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d")
_ADAPTIVE = names("adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d")


def window_pool(x, *, maximum: bool, window, stride, padding, counted: bool):
    """A pool with its own number of rows before and after each axis.

    Args:
      x: `[batch, channels, ...]`.
      maximum: the largest value, else the mean.
      padding: (before, after) for each axis; may be negative, which cuts.
      counted: whether padding counts in a mean.
    """
    rank = x.ndim - 2
    sides = [n for low, high in reversed(padding) for n in (low, high)]
    unfold = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[rank]
    average = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[rank]
    if maximum:
        return unfold(F.pad(x, sides, value=float("-inf")), window, stride)
    y = average(F.pad(x, sides), window, stride)
    if counted:
        return y
    return y / average(F.pad(torch.ones_like(x[:1, :1]), sides), window, stride)


def _windows(place: Place):
    call, a = place.call, place.call.arguments
    x, rank = a["input"], a["input"].ndim - 2
    maximum = call.name.startswith("max")
    window = pair(a["kernel_size"], rank)
    stride = pair(a["stride"], rank) if a.get("stride") not in (None, [], ()) else window
    padding = pair(a.get("padding", 0), rank)
    own = tuple((n, n) for n in padding)
    size, ceil = x.shape[2:], a.get("ceil_mode", False)
    if ceil:
        own = tuple(
            (p, p + max((-(-(n + 2 * p - k) // s)) * s + k - n - 2 * p, 0))
            for p, n, k, s in zip(padding, size, window, stride, strict=True)
        )
    counted = a.get("count_include_pad", True)
    flax = f"nn.{'max' if maximum else 'avg'}_pool(x, {window}, strides={stride}, padding={own}"
    flax += ")" if maximum else f", count_include_pad={counted})"

    def proposal(kind, says, *, m=maximum, k=window, s=stride, p=own, c=counted):
        def change(_, arguments):
            return window_pool(arguments["input"], maximum=m, window=k, stride=s, padding=p, counted=c)

        return Proposal(kind, says, flax, {call.index: change})

    same = tuple(same_padding(*each) for each in zip(size, window, stride, strict=True))
    if not maximum and (any(padding) or ceil):
        yield proposal(
            "pool_counts_padding",
            f"{'does not count' if counted else 'counts'} the padding in the mean, other than PyTorch",
            c=not counted,
        )
    if same != own:
        yield proposal("pool_padding", f'pads as "SAME" does, {same}, where PyTorch pads {own}', p=same)
        yield proposal("pool_padding", f'pads as "SAME" does, {same}, without counting it', p=same, c=False)
    for amount in range(max(window) + 1):
        if own != ((amount, amount),) * rank:
            yield proposal("pool_padding", f"pads {amount} where PyTorch pads {own}", p=((amount, amount),) * rank)
    ceiled = tuple((p, p + s - 1) for (p, _), s in zip(own, stride, strict=True))
    floored = tuple((p, p) for p in padding)
    if ceil and floored != own:
        yield proposal(
            "pool_ceil", "leaves out the last, incomplete window (ceil_mode=False), PyTorch keeps it", p=floored
        )
    if not ceil:
        yield proposal(
            "pool_ceil", "keeps the last, incomplete window (ceil_mode=True), PyTorch drops it", p=ceiled, c=False
        )
        yield proposal("pool_ceil", "keeps the last, incomplete window (ceil_mode=True), PyTorch drops it", p=ceiled)
    yield proposal(
        "pool_kind",
        "takes the {} of each window, PyTorch the {}".format(
            *(("mean", "largest value") if maximum else ("largest value", "mean"))
        ),
        m=not maximum,
    )
    for k in range(1, max(window) + 3):
        if (k,) * rank != window:
            for s in dict.fromkeys((stride, (k,) * rank)):
                for p in dict.fromkeys(
                    (
                        own,
                        ((0, 0),) * rank,
                        ((k // 2, k // 2),) * rank,
                        tuple(same_padding(n, k, t) for n, t in zip(size, s, strict=True)),
                    )
                ):
                    yield proposal(
                        "pool_window",
                        f"takes windows of {k} by steps of {s} where PyTorch takes {window} by {stride}",
                        k=(k,) * rank,
                        s=s,
                        p=p,
                    )
    for s in range(1, max(window) + 2):
        if (s,) * rank != stride:
            for p in dict.fromkeys((own, tuple(same_padding(n, k, s) for n, k in zip(size, window, strict=True)))):
                yield proposal("pool_stride", f"moves by {s} where PyTorch moves by {stride}", s=(s,) * rank, p=p)


def _adaptive(place: Place):
    call, a = place.call, place.call.arguments
    x, y = a["input"], call.output
    axes = tuple(range(y.ndim - (x.ndim - 2), y.ndim)) if x.ndim > 2 else ()
    total = y.shape[axes[0] :] if axes else ()
    ratios = [n // m for n, m in zip(x.shape[2:], total, strict=True)] if axes else []
    fix = "jnp.mean(x, axis=(1, 2))" if "avg" in call.name else "jnp.max(x, axis=(1, 2))"
    rank = len(axes)
    whole = all(n % m == 0 for n, m in zip(x.shape[2:], total, strict=True))
    if whole and rank:
        options = {"largest value": True, "mean": False}
        own = "mean" if "avg" in call.name else "largest value"
        for words, maximum in options.items():
            if words != own:
                yield Proposal(
                    "pool_kind",
                    f"takes the {words}, PyTorch the {own}",
                    fix,
                    {
                        call.index: lambda c, a, m=maximum: window_pool(
                            a["input"], maximum=m, window=ratios, stride=ratios, padding=((0, 0),) * rank, counted=True
                        )
                    },
                )
        count = 1
        for n in ratios:
            count *= n
        yield Proposal(
            "reduction",
            "sums where PyTorch takes the mean",
            fix,
            {
                call.index: lambda c, a: (
                    window_pool(
                        a["input"], maximum=False, window=ratios, stride=ratios, padding=((0, 0),) * rank, counted=True
                    )
                    * count
                )
            },
        )
    for size in range(1, 9):
        if rank and (size,) * rank != tuple(total) and size <= min(x.shape[2:]):
            function = getattr(F, call.name)
            yield Proposal(
                "pool_window",
                f"pools to {size} where PyTorch pools to {tuple(total)}",
                fix,
                {call.index: lambda c, a, size=size, f=function: f(a["input"], size)},
            )


def _reduce(place: Place):
    """`x.mean(axes)` and the like: another reduction, or over other axes."""
    call, a = place.call, place.call.arguments
    x = a["input"]
    keep = call.output.ndim == x.ndim
    given = a.get("dim", a.get("1"))
    own = (
        tuple(range(x.ndim))
        if given is None
        else tuple(n % x.ndim for n in ((given,) if isinstance(given, int) else given))
    )
    functions = {
        "mean": lambda x, d: x.mean(d, keepdim=keep),
        "sum": lambda x, d: x.sum(d, keepdim=keep),
        "amax": lambda x, d: x.amax(d, keepdim=keep),
    }
    words = {"mean": "the mean", "sum": "the sum", "amax": "the largest value", "max": "the largest value"}
    for name, function in functions.items():
        if name != call.name and not (name == "amax" and call.name == "max"):
            yield Proposal(
                "reduction",
                f"takes {words[name]} where PyTorch takes {words[call.name]}",
                f"jnp.{call.name.replace('amax', 'max')}(x, axis=...)",
                {call.index: lambda c, a, f=function: f(a["input"], own)},
            )
    base = functions.get(call.name, functions["amax"])
    for count in range(1, x.ndim):
        for other in itertools.combinations(range(x.ndim), count):
            if other != own:
                yield Proposal(
                    "reduction",
                    f"reduces the axes {other} (in PyTorch's order) where PyTorch reduces {own}",
                    f"jnp.{call.name.replace('amax', 'max')}(x, axis=...)",
                    {call.index: lambda c, a, other=other: base(a["input"], other)},
                )
    axis = own[0]
    if len(own) == 1:
        for index, name in ((0, "the first entry"), (x.shape[axis] - 1, "the last entry")):
            yield Proposal(
                "reduction",
                f"takes {name} of the axis where PyTorch takes {words[call.name]}",
                f"jnp.{call.name.replace('amax', 'max')}(x, axis=...)",
                {
                    call.index: lambda c, a, i=index: (
                        a["input"].select(axis, i) if not keep else a["input"].narrow(axis, i, 1)
                    )
                },
            )
        yield Proposal(
            "reduction",
            "leaves out the first entry of the axis",
            f"jnp.{call.name}(x, axis=...)",
            {call.index: lambda c, a: base(a["input"].narrow(axis, 1, x.shape[axis] - 1), own)},
        )


_JAX = {
    "nearest": "nearest",
    "bilinear": "linear",
    "bicubic": "cubic-pytorch",
    "linear": "linear",
    "trilinear": "linear",
}


def _resize(place: Place):
    call, a = place.call, place.call.arguments
    size = call.output.shape[2:]
    mode, corners, antialias = a.get("mode", "nearest"), bool(a.get("align_corners")), a.get("antialias", False)
    fix = f"jax.image.resize(x, shape, method={_JAX.get(mode, mode)!r}, antialias={bool(antialias)})"
    for kernel in ("nearest", "nearest_floor", "linear", "cubic_half", "cubic_torch"):
        for align in (False, True):
            for smooth in (False, True):
                for clamp in (False, True):
                    words = {
                        "nearest": "the nearest pixel (of its middle)",
                        "nearest_floor": "the nearest pixel (rounded down)",
                        "linear": "linear interpolation",
                        "cubic_half": "cubic interpolation with a = -0.5",
                        "cubic_torch": "cubic interpolation with a = -0.75",
                    }[kernel]
                    kind = "align_corners" if align != corners else "antialias" if smooth != antialias else "resize"
                    words += ", corners aligned" if align else ""
                    words += ", antialiased" if smooth else ""
                    yield Proposal(
                        kind,
                        f"resizes by {words}; PyTorch by {mode}, align_corners={corners}, antialias={antialias}",
                        fix,
                        {
                            call.index: lambda c, a, k=kernel, al=align, s=smooth, cl=clamp: resize(
                                a["input"], size, kernel=k, corners=al, antialias=s, clamp=cl
                            )
                        },
                    )
    for factor in (1, 2, 3, 4):
        target = tuple(n * factor for n in a["input"].shape[2:])
        if target != tuple(size):
            yield Proposal(
                "resize",
                f"resizes to {target} where PyTorch resizes to {tuple(size)}",
                fix,
                {
                    call.index: lambda c, a, t=target: F.interpolate(
                        a["input"], t, mode=mode, align_corners=a.get("align_corners")
                    )
                },
            )


KINDS = (
    Kind(
        "pool_padding",
        "window, stride and padding of a pool",
        "features of another size, or wrong at the border",
        _WINDOWS,
        _windows,
    ),
    Kind("pool_kind", "a global pool", "another scale before the classifier", _ADAPTIVE, _adaptive),
    Kind("reduction", "a mean, a sum or a maximum", "another scale", names("mean sum amax max"), _reduce),
    Kind("resize", "how images are resized", "images shifted by a part of a pixel", names("interpolate"), _resize),
)
