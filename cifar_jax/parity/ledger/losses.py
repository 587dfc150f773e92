"""Rows M: losses, labels and the mean over an epoch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from cifar_jax.data.dataset import Dataset, Split, check_dataset
from cifar_jax.nn.losses import batch_metrics, cross_entropy
from cifar_jax.parity.ledger import lecture
from cifar_jax.parity.ledger.page import Picture
from cifar_jax.parity.ledger.row import Measurement, Row, compare, compare_facts

_CLASSES = 100


def _logits_and_labels(n: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return (scale * rng.normal(size=(n, _CLASSES))).astype(np.float32), rng.integers(0, _CLASSES, n).astype(np.int32)


def _epoch_loss() -> Measurement:
    """Loss of 1,010 images in batches of 200, the last of 10 images that the network finds hard."""
    logits, labels = _logits_and_labels(1010, 1.0)
    logits[1000:] -= 5 * np.eye(_CLASSES, dtype=np.float32)[labels[1000:]]
    theirs = torch.nn.CrossEntropyLoss()(torch.tensor(logits).double(), torch.tensor(labels).long()).item()
    parts = [(logits[i : i + 200], labels[i : i + 200]) for i in range(0, 1010, 200)]
    compiled = jax.jit(batch_metrics)
    metrics = [compiled(*part) for part in parts]
    ours = sum(float(m.loss_sum) for m in metrics) / sum(int(m.count) for m in metrics)
    naive = np.mean([float(optax.softmax_cross_entropy_with_integer_labels(*part).mean()) for part in parts])
    running = sum(torch.nn.CrossEntropyLoss()(torch.tensor(x), torch.tensor(y).long()) for x, y in parts) / len(parts)
    note = f"the slide's own figure in torch: {running.item():.6g}; an image of the last batch weighs 20 times as much"
    return compare(theirs, ours, naive, note=note)


def _labels() -> Measurement:
    """What becomes of a label of -1 among 100 classes."""
    logits, labels = _logits_and_labels(4, 1.0)
    labels[2] = -1

    def theirs():
        # -100 is torch's own ignore_index; every other negative label is an error.
        torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels).long())

    def ours():
        split = Split(np.zeros((4, 32, 32, 3), np.uint8), labels)
        names = tuple(str(number) for number in range(_CLASSES))
        check_dataset(Dataset("labels", split, split, names, (), ()))

    losses = np.asarray(optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(logits), jnp.asarray(labels)))
    wrapped = -np.asarray(jax.nn.log_softmax(logits))[2, _CLASSES - 1]
    naive = "loss of the last class" if np.isclose(losses[2], wrapped) else f"loss {losses[2]:g}"
    labels_above = jnp.asarray(np.where(labels < 0, _CLASSES, labels))
    above = optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(logits), labels_above)[2]
    return compare_facts(
        _outcome(theirs), _outcome(ours), naive, note=f"a label of 100 gives a loss of {above} in optax"
    )


def _outcome(run) -> str:
    try:
        run()
    except (IndexError, ValueError):
        return "refused"
    return "taken"


def _hand_written(logits, labels) -> jax.Array:
    """The slide's softmax and cross-entropy, line for line in jax.numpy, for each image."""
    exponentials = jnp.exp(logits)
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    return -jnp.log(jnp.take_along_axis(probabilities, labels[:, None], axis=1))[:, 0]


def _softmax(scale: float) -> tuple[float, float, float, float]:
    """Mean losses in float32: torch's CrossEntropyLoss, ours, the slide's in jax.numpy, the slide's in torch."""
    logits, labels = _logits_and_labels(64, scale)
    x, y = torch.tensor(logits), torch.tensor(labels).long()
    one_hot = torch.nn.functional.one_hot(y, _CLASSES)
    return (
        torch.nn.CrossEntropyLoss()(x, y).item(),
        float(cross_entropy(jnp.asarray(logits), jnp.asarray(labels)).mean()),
        float(_hand_written(jnp.asarray(logits), jnp.asarray(labels)).mean()),
        lecture.cross_entropy(lecture.softmax(x), one_hot).item(),
    )


def _overflow() -> Measurement:
    *sides, slide = _softmax(50.0)
    small = _softmax(1.0)
    note = f"the slide's own lines in torch give {slide}; on logits of deviation 1 both give {small[3]:.4f}"
    return compare(*sides, note=note)


def _draw_overflow() -> Picture:
    scales = [1, 2, 5, 10, 15, 20, 25, 30, 35, 40, 50]
    losses = np.array([_softmax(float(scale)) for scale in scales]).T
    finite = [[value if np.isfinite(value) else float("nan") for value in side] for side in losses]
    last = max(scale for scale, loss in zip(scales, losses[2], strict=True) if np.isfinite(loss))
    names = ("torch: CrossEntropyLoss", "ours", f"naive: NaN after {last}")
    return Picture(
        "Where the hand-written loss ends", "deviation of the logits", "mean loss", scales,
        dict(zip(names, finite[:3], strict=True)),
    )  # fmt: skip


def _gradient() -> Measurement:
    """Largest-magnitude gradient by the logits in float32."""
    logits, labels = _logits_and_labels(64, 50.0)
    x = torch.tensor(logits, requires_grad=True)
    torch.nn.CrossEntropyLoss()(x, torch.tensor(labels).long()).backward()
    ours = jax.grad(lambda x: cross_entropy(x, jnp.asarray(labels)).mean())(jnp.asarray(logits))
    naive = jax.grad(lambda x: _hand_written(x, jnp.asarray(labels)).mean())(jnp.asarray(logits))
    return compare(x.grad.numpy(), ours, naive)


ROWS = (
    Row(
        id="M1",
        title="Loss of an epoch",
        compared="mean loss of 1,010 images in batches of 200",
        explanation=(
            "The slide adds up batch means and divides by the number of batches, so an image of a short last batch "
            "weighs more than the others: 20 times here. Sums and counts weigh every image the same."
        ),
        wrong="epoch_loss = running_loss / len(batches)",
        right="epoch_loss = loss_sum / count  # losses.Metrics",
        tolerance=1e-5,
        reason="float32 sums of 200 losses; torch in one pass in double",
        run=_epoch_loss,
    ),
    Row(
        id="M2",
        title="A label out of range",
        compared="a label of -1 among 100 classes",
        explanation=(
            "PyTorch raises. JAX cannot raise inside a compiled step: -1 wraps to the last class without a word, and "
            "100 gives NaN. Labels are checked where the data are loaded."
        ),
        wrong="optax.softmax_cross_entropy_with_integer_labels(logits, labels)",
        right="check_dataset(dataset)  # InputError: Labels of ... must be from 0 to 99, got -1 at position 2 of ...",
        tolerance=0,
        reason="either it is refused or not",
        run=_labels,
    ),
    Row(
        id="M3",
        title="Hand-written softmax and cross-entropy: loss",
        compared="mean loss at logits of deviation 50, float32",
        explanation=(
            "The lecture's CIFAR-10 program takes exp, divides by the sum and takes the logarithm. exp(89) is infinite "
            "in float32, and exp of a small logit beside a large one is 0, whose logarithm is infinite. "
            "CrossEntropyLoss and optax take the maximum out first. On small logits the two are the same."
        ),
        wrong="p = jnp.exp(x) / jnp.exp(x).sum(axis=1, keepdims=True)\nloss = -(jnp.log(p) * one_hot).sum() / len(x)",
        right="losses.cross_entropy(logits, labels).mean()",
        tolerance=1e-4,
        reason="float32: a mean of 64 losses of about 130",
        run=_overflow,
        picture=_draw_overflow,
    ),
    Row(
        id="M3G",
        title="Hand-written softmax and cross-entropy: gradient",
        compared="gradient of the mean loss at logits of deviation 50, float32",
        explanation="Where the hand-written loss is infinite its gradient is NaN, and then so is every weight.",
        wrong="jax.grad(lambda x: -(jnp.log(softmax(x)) * one_hot).sum() / len(x))",
        right="jax.grad(lambda x: losses.cross_entropy(x, labels).mean())",
        tolerance=1e-8,
        reason="float32: gradients of at most 1/64",
        run=_gradient,
    ),
)
