"""Hypotheses about normalisation: epsilon, mode, running statistics, which axes, scale and bias."""

import torch
import torch.nn.functional as F

from cifar_jax.parity.comparison.causes.proposal import (
    Kind,
    Place,
    Proposal,
    names,
    number,
    replaced_by,
    with_arguments,
)

NORMS = names("batch_norm layer_norm group_norm instance_norm rms_norm")
_EPSILONS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-12, 1e-2, 0.0)
_FLAX = {
    "batch_norm": "nn.BatchNorm",
    "layer_norm": "nn.LayerNorm",
    "group_norm": "nn.GroupNorm",
    "instance_norm": "nn.InstanceNorm",
    "rms_norm": "nn.RMSNorm",
}


def _epsilon(place: Place):
    call = place.call
    given = call.arguments.get("eps", 1e-5)
    for value in _EPSILONS:
        if value != given:
            yield Proposal(
                "epsilon",
                f"uses epsilon {number(value)} where PyTorch has {number(given or 0)}",
                f"{_FLAX[call.name]}(epsilon={number(given or 0)}, ...)",
                {call.index: with_arguments(eps=value)},
            )
    for value in dict.fromkeys((given or 1e-5, 1e-6)):
        yield Proposal(
            "epsilon",
            f"adds epsilon {number(value)} outside of the root, where PyTorch adds it to the variance",
            "(x - mean) / jnp.sqrt(var + epsilon)",
            {call.index: lambda c, a, value=value: normalised(c.name, a, epsilon=value, outside=True)},
        )


def normalised(name, arguments, *, epsilon=None, outside=False, unbiased=False, centre=True, axes=None):
    """A norm written out, so that its parts can be changed.

    Args:
      name, arguments: the torch function and its arguments.
      epsilon: instead of the call's own. outside: it is added to the deviation, not to the variance.
      unbiased: divides the sum of squares by n - 1.
      centre: whether the mean is taken off.
      axes: axes over which mean and variance are taken, instead of the norm's own.
    """
    x = arguments["input"]
    epsilon = arguments.get("eps", 1e-5) if epsilon is None else epsilon
    shape = x.shape
    weight, bias = arguments.get("weight"), arguments.get("bias")
    own = {
        "batch_norm": (0, *range(2, x.ndim)),
        "instance_norm": tuple(range(2, x.ndim)),
        "layer_norm": tuple(range(x.ndim - len(arguments.get("normalized_shape", (1,))), x.ndim)),
        "rms_norm": (x.ndim - 1,),
        "group_norm": tuple(range(2, x.ndim + 1)),
    }[name]
    if name == "group_norm" and axes is None:
        x = x.reshape(x.shape[0], arguments["num_groups"], -1, *x.shape[2:])
    axes = own if axes is None else axes
    if name == "batch_norm" and not arguments.get("training", False):
        view = (1, -1, *(1,) * (x.ndim - 2))
        mean, variance = arguments["running_mean"].view(view), arguments["running_var"].view(view)
    else:
        mean = x.mean(axes, keepdim=True)
        variance = x.var(axes, unbiased=unbiased, keepdim=True)
    if not centre:
        variance, mean = (x * x).mean(axes, keepdim=True), torch.zeros_like(mean)
    y = (x - mean) / (variance.sqrt() + epsilon if outside else (variance + epsilon).sqrt())
    y = y.reshape(shape)
    if weight is not None:
        y = y * _spread(weight, y, name)
    return y + _spread(bias, y, name) if bias is not None else y


def _spread(parameter, x, name):
    return parameter if name in ("layer_norm", "rms_norm") else parameter.view(1, -1, *(1,) * (x.ndim - 2))


def _mode(place: Place):
    call = place.call
    training = call.arguments.get("training", False)
    if training:
        says = "normalises with the running statistics in training, where PyTorch uses the batch's"
        fix = "nn.BatchNorm(use_running_average=not train), called with train=True in training"
    else:
        says = "normalises with the batch's own statistics in evaluation, where PyTorch uses the running ones"
        fix = "nn.BatchNorm(use_running_average=not train), called with train=False in evaluation"

    def other(call, arguments):
        copies = {n: arguments[n].clone() for n in call.before}
        from cifar_jax.parity.comparison.torch_side import call_again

        return call_again(call, {**arguments, **copies, "training": not training})

    if call.arguments.get("running_mean") is not None:
        yield Proposal("norm_mode", says, fix, {call.index: other})


def _parts(place: Place):
    call, arguments = place.call, place.call.arguments
    flax = _FLAX[call.name]
    if arguments.get("weight") is not None:
        yield Proposal(
            "norm_scale", "leaves out the scale", f"{flax}(use_scale=True)", {call.index: with_arguments(weight=None)}
        )
        yield Proposal(
            "norm_scale",
            "multiplies by 1 + scale where PyTorch multiplies by the scale",
            f"{flax}(...)",
            {call.index: lambda c, a: normalised(c.name, {**a, "weight": a["weight"] + 1})},
        )
    if arguments.get("bias") is not None:
        yield Proposal(
            "missing_bias",
            "leaves out the norm's bias",
            f"{flax}(use_bias=True)",
            {call.index: with_arguments(bias=None)},
        )
    if arguments.get("weight") is not None and arguments.get("bias") is not None:
        yield Proposal(
            "norm_scale",
            "leaves out scale and bias",
            f"{flax}(use_scale=True, use_bias=True)",
            {call.index: with_arguments(weight=None, bias=None)},
        )
    if call.name != "rms_norm":
        yield Proposal(
            "norm_centre",
            "does not take the mean off (a norm by the root mean square)",
            f"{flax}(...), not nn.RMSNorm",
            {call.index: lambda c, a: normalised(c.name, a, centre=False)},
        )
        yield Proposal(
            "norm_variance",
            "normalises with the unbiased variance (n - 1), where PyTorch divides by n",
            "x.var(axis) with ddof=0",
            {call.index: lambda c, a: normalised(c.name, a, unbiased=True)},
        )
    else:
        yield Proposal(
            "norm_centre",
            "takes the mean off, which RMSNorm does not",
            "nn.RMSNorm(...)",
            {call.index: lambda c, a: normalised("layer_norm", a)},
        )


def _axes(place: Place):
    call, x = place.call, place.call.arguments["input"]
    channels = x.shape[1] if x.ndim > 2 else x.shape[-1]
    if call.name == "group_norm":
        given = call.arguments["num_groups"]
        for groups in (n for n in range(1, channels + 1) if channels % n == 0 and n != given):
            yield Proposal(
                "groups",
                f"takes {groups} groups where PyTorch has {given}",
                f"nn.GroupNorm(num_groups={given})",
                {call.index: with_arguments(num_groups=groups)},
            )
    axes = {
        "each image and channel": tuple(range(2, x.ndim)),
        "the channels of each place": (1,),
        "the last axis": (x.ndim - 1,),
        "all of each example": tuple(range(1, x.ndim)),
        "the batch and all places": (0, *range(2, x.ndim)),
        "the batch only": (0,),
        "the places of each image, batch included": (0, *range(1, x.ndim - 1)),
    }
    if call.name == "batch_norm" and not call.arguments.get("training", False):
        return
    for words, over in axes.items():
        if over:
            yield Proposal(
                "norm_axes",
                f"takes mean and variance over {words}",
                f"{_FLAX[call.name]}: the axes that {call.name} reduces",
                {call.index: lambda c, a, over=over: normalised(c.name, a, axes=over)},
            )


def _deviation(place: Place):
    call = place.call
    unbiased = call.arguments.get("unbiased", call.arguments.get("correction", 1) != 0)
    other = {k: v for k, v in call.arguments.items() if k not in ("unbiased", "correction", "2")}

    def change(call_, arguments):
        return getattr(torch, call.name)(
            arguments["input"], **{k: v for k, v in other.items() if k in ("dim", "keepdim")}, unbiased=not unbiased
        )

    ddof = 1 if unbiased else 0
    yield Proposal(
        "norm_variance",
        f"divides by n{'' if unbiased else ' - 1'} where PyTorch divides by n{' - 1' if unbiased else ''}",
        f"jnp.{call.name}(x, ddof={ddof})",
        {call.index: change},
    )


def _unit_length(place: Place):
    call, arguments = place.call, place.call.arguments
    for order in (1.0, 2.0, float("inf")):
        for dim in range(arguments["input"].ndim):
            if (order, dim) != (arguments.get("p", 2.0), arguments.get("dim", 1)):
                yield Proposal(
                    "norm_axes",
                    f"normalises by the {order:g}-norm over axis {dim}",
                    f"x / jnp.linalg.norm(x, ord={arguments.get('p', 2.0):g}, axis=..., keepdims=True)",
                    {
                        call.index: replaced_by(
                            lambda input, order=order, dim=dim, **rest: F.normalize(input, order, dim)
                        )
                    },
                )


KINDS = (
    Kind("epsilon", "epsilon of a norm", "small, where activations are small large", NORMS, _epsilon),
    Kind(
        "norm_mode",
        "batch or running statistics",
        "training fine and evaluation bad, or the reverse",
        names("batch_norm instance_norm"),
        _mode,
    ),
    Kind("norm_scale", "scale and bias of a norm", "activations of another size", NORMS, _parts),
    Kind(
        "norm_axes",
        "axes and groups of a norm",
        "activations of another distribution",
        names("layer_norm group_norm instance_norm batch_norm rms_norm"),
        _axes,
    ),
    Kind(
        "norm_variance",
        "biased or unbiased variance",
        "a factor near 1 that depends on the size",
        names("var std"),
        _deviation,
    ),
    Kind("norm_axes", "normalisation to length 1", "features of another length", names("normalize"), _unit_length),
)
