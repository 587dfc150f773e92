"""Hypotheses about loss functions."""

import torch
import torch.nn.functional as F

from cifar_jax.parity.comparison.causes.proposal import Kind, Place, Proposal, names
from cifar_jax.parity.comparison.torch_side import call_again

LOSSES = names(
    "cross_entropy nll_loss mse_loss l1_loss smooth_l1_loss huber_loss binary_cross_entropy "
    "binary_cross_entropy_with_logits kl_div"
)


def _reduction(place: Place):
    call, a = place.call, place.call.arguments
    given = a.get("reduction", "mean")
    batch = a["input"].shape[0]
    for other in ("mean", "sum"):
        if other != given:
            yield Proposal(
                "loss_reduction",
                f"takes the {other} of the losses where PyTorch takes the {given}",
                f"losses.{given}()",
                {call.index: lambda c, a, o=other: call_again(c, {**a, "reduction": o})},
            )
    yield Proposal(
        "loss_reduction",
        f"sums each example's loss and averages over the batch, PyTorch takes the {given} of all",
        f"losses.{given}()",
        {call.index: lambda c, a: call_again(c, {**a, "reduction": "sum"}) / batch},
    )
    if call.name in ("mse_loss", "huber_loss", "smooth_l1_loss"):
        for reduction in dict.fromkeys((given, "mean", "sum")):
            yield Proposal(
                "loss_half",
                f"takes half of the square ({reduction}), as optax.l2_loss does",
                "optax.squared_error(...)",
                {call.index: lambda c, a, r=reduction: 0.5 * call_again(c, {**a, "reduction": r})},
            )


def _classes(place: Place):
    call, a = place.call, place.call.arguments
    given, reduction = a.get("label_smoothing", 0.0), a.get("reduction", "mean")
    x, target = a["input"], a["target"]
    classes = x.shape[1]
    for value in (0.0, 0.1, 0.05, 0.2, 0.01, 0.15, 0.3):
        if value != given:
            yield Proposal(
                "label_smoothing",
                f"smooths labels by {value} where PyTorch smooths by {given}",
                f"optax.smooth_labels(onehot, {given})",
                {call.index: lambda c, a, v=value: call_again(c, {**a, "label_smoothing": v})},
            )
    if given:
        # Smoothing that leaves nothing of it for the right class.
        other = given * classes / (classes - 1)
        yield Proposal(
            "label_smoothing",
            "gives the smoothed share to the wrong classes alone, PyTorch to all",
            f"optax.smooth_labels(onehot, {given})",
            {call.index: lambda c, a: call_again(c, {**a, "label_smoothing": other})},
        )
    if not target.is_floating_point():
        ignored = a.get("ignore_index", -100)
        for says, change in (
            ("counts the labels that PyTorch ignores as class 0", lambda t: torch.where(t == ignored, 0, t)),
            (
                "counts the labels that PyTorch ignores as the last class",
                lambda t: torch.where(t == ignored, classes - 1, t),
            ),
            ("counts the labels that PyTorch ignores", lambda t: t % classes),
        ):
            yield Proposal(
                "ignored_labels",
                says,
                "jnp.where(labels == ignored, 0, losses)",
                {
                    call.index: lambda c, a, f=change: call_again(
                        c, {**a, "target": f(a["target"]), "ignore_index": -12345}
                    )
                },
            )
        if 0 <= ignored < classes:
            yield Proposal(
                "ignored_labels",
                "counts the labels that PyTorch ignores",
                "a mask of the labels that count",
                {call.index: lambda c, a: call_again(c, {**a, "ignore_index": -12345})},
            )
        total = target.numel()
        yield Proposal(
            "ignored_labels",
            "divides by all labels, PyTorch by those that are not ignored",
            "losses.sum() / mask.sum()",
            {call.index: lambda c, a: call_again(c, {**a, "reduction": "sum"}) / total},
        )
        for token in (0, classes - 1):
            yield Proposal(
                "ignored_labels",
                f"ignores the label {token}, PyTorch does not",
                "no mask",
                {call.index: lambda c, a, t=token: call_again(c, {**a, "ignore_index": t})},
            )
    if a.get("weight") is not None:
        yield Proposal(
            "class_weights",
            "weighs all classes the same",
            "weights[labels] * losses",
            {call.index: lambda c, a: call_again(c, {**a, "weight": None})},
        )

        def plain_mean(c, a):
            return call_again(c, {**a, "reduction": "none"}).mean()

        yield Proposal(
            "class_weights",
            "divides by the number of labels, PyTorch by the sum of their weights",
            "(weights[labels] * losses).sum() / weights[labels].sum()",
            {call.index: plain_mean},
        )
    yield Proposal(
        "softmax_twice",
        "takes the softmax twice: of probabilities, not of logits",
        "optax.softmax_cross_entropy_with_integer_labels(logits, labels)",
        {call.index: lambda c, a: call_again(c, {**a, "input": torch.softmax(a["input"], 1)})},
    )
    if call.name == "nll_loss":
        yield Proposal(
            "softmax_twice",
            "takes the logarithm of a softmax, PyTorch takes the values as they are",
            "-jnp.take_along_axis(log_probs, labels)",
            {call.index: lambda c, a: F.cross_entropy(a["input"], a["target"], reduction=reduction)},
        )


def _binary(place: Place):
    call, a = place.call, place.call.arguments
    reduction = a.get("reduction", "mean")
    if call.name == "binary_cross_entropy_with_logits":
        yield Proposal(
            "softmax_twice",
            "takes the sigmoid twice",
            "optax.sigmoid_binary_cross_entropy(logits, labels)",
            {call.index: lambda c, a: call_again(c, {**a, "input": torch.sigmoid(a["input"])})},
        )
        if a.get("pos_weight") is not None:
            yield Proposal(
                "class_weights",
                "leaves out pos_weight",
                "pos_weight * labels * ...",
                {call.index: lambda c, a: call_again(c, {**a, "pos_weight": None})},
            )
    else:
        yield Proposal(
            "softmax_twice",
            "takes the values for logits, PyTorch for probabilities",
            "-(y * log(p) + (1 - y) * log(1 - p))",
            {call.index: lambda c, a: F.binary_cross_entropy_with_logits(a["input"], a["target"], reduction=reduction)},
        )


def _robust(place: Place):
    call, a = place.call, place.call.arguments
    name = "delta" if call.name == "huber_loss" else "beta"
    given, reduction = a.get(name, 1.0), a.get("reduction", "mean")
    for value in (0.1, 0.5, 1.0, 2.0, 1 / 9):
        for words, function, key in (("Huber", F.huber_loss, "delta"), ("smooth L1", F.smooth_l1_loss, "beta")):
            yield Proposal(
                "loss_delta",
                f"uses the {words} loss with {key} {value:g} where PyTorch's {name} is {given:g}",
                f"optax.huber_loss(..., delta={given:g}) / delta for smooth L1",
                {
                    call.index: lambda c, a, v=value, f=function, k=key: f(
                        a["input"], a["target"], reduction=reduction, **{k: v}
                    )
                },
            )


def _other(place: Place):
    call, a = place.call, place.call.arguments
    reduction = a.get("reduction", "mean")
    functions = {"squared": F.mse_loss, "absolute": F.l1_loss}
    own = {"mse_loss": "squared", "l1_loss": "absolute"}.get(call.name)
    for words, function in functions.items():
        if words != own:
            yield Proposal(
                "loss_kind",
                f"takes the {words} error",
                f"torch's {call.name}",
                {call.index: lambda c, a, f=function: f(a["input"], a["target"], reduction=reduction)},
            )
    if call.name == "kl_div":
        yield Proposal(
            "loss_reduction",
            "divides by the batch (batchmean)",
            "optax.kl_divergence(...)",
            {call.index: lambda c, a: call_again(c, {**a, "reduction": "batchmean"})},
        )


KINDS = (
    Kind("loss_reduction", "mean or sum of the loss", "a learning rate that is off by a factor", LOSSES, _reduction),
    Kind(
        "label_smoothing",
        "labels of cross entropy",
        "another loss at the same logits",
        names("cross_entropy nll_loss"),
        _classes,
    ),
    Kind(
        "softmax_twice",
        "logits or probabilities",
        "learns slowly",
        names("binary_cross_entropy binary_cross_entropy_with_logits"),
        _binary,
    ),
    Kind("loss_delta", "a robust loss", "another weight of outliers", names("huber_loss smooth_l1_loss"), _robust),
    Kind("loss_kind", "which loss", "another optimum", names("mse_loss l1_loss kl_div"), _other),
)
