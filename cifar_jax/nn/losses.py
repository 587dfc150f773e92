"""Cross-entropy, and metrics as sums and counts, so that batches of any size add up."""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int


class Metrics(NamedTuple):
    """Sums over the images of one batch, or of many."""

    loss_sum: Float[Array, ""]
    correct: Int[Array, ""]
    count: Int[Array, ""]


def cross_entropy(logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]) -> Float[Array, " batch"]:
    """`-log softmax(logits)[label]` of each image. Labels must lie in `[0, classes)`: they are checked at load.

    Source: torch.nn.CrossEntropyLoss(reduction="none").
    """
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def batch_metrics(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], mask: Bool[Array, " batch"] | None = None
) -> Metrics:
    """Summed loss, correct answers and number of images; rows with a False mask count for nothing."""
    losses = cross_entropy(logits, labels)
    correct = jnp.argmax(logits, axis=-1) == labels
    if mask is None:
        mask = jnp.ones(labels.shape, bool)
    # where, not a product: a padded row's loss may be infinite, and 0 * inf is NaN.
    return Metrics(
        loss_sum=jnp.sum(jnp.where(mask, losses, 0)),
        correct=jnp.sum(correct & mask, dtype=jnp.int32),
        count=jnp.sum(mask, dtype=jnp.int32),
    )
