"""One compiled training step and one compiled evaluation step over a data set that lies on the device."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, Int32, UInt8

from cifar_jax.losses import Metrics, batch_metrics
from cifar_jax.state import TrainState
from cifar_jax.transforms import Transform, transform_eval, transform_train


class Batch(NamedTuple):
    """Which images make up a batch; of a fixed length, so that one compilation serves them all.

    indices: positions in the data set.
    mask: False for rows that only fill up a last, ragged batch; None where every batch is full.
    flips: which images are mirrored in training, where that was drawn before; None draws it in the step.
    """

    indices: Int32[Array, " batch"]
    mask: Bool[Array, " batch"] | None
    flips: Bool[Array, " batch"] | None = None


@functools.partial(jax.jit, static_argnames=("model", "tx", "transform"), donate_argnames=("state",))
def train_step(
    state: TrainState,
    images: UInt8[Array, "n 32 32 3"],
    labels: Int[Array, " n"],
    batch: Batch,
    *,
    model: nn.Module,
    tx: optax.GradientTransformation,
    transform: Transform,
) -> tuple[TrainState, Metrics]:
    """One update on the images that `batch` names, out of the whole data set.

    The state passed in is donated: its buffers are reused and it must not be read again.

    Returns:
      The next state, and the sums of loss and correct answers over the batch, as the network gave them before the
      update and in training mode.
    """
    x = transform_train(
        jnp.take(images, batch.indices, axis=0, mode="clip"),
        jax.random.fold_in(state.key, state.step),
        transform,
        mask=batch.mask,
        flips=batch.flips,
        dtype=jnp.promote_types(model.dtype, jnp.float32),
    )
    y = jnp.take(labels, batch.indices, mode="clip")

    def loss_fn(params):
        logits, updates = model.apply(
            {"params": params, "batch_stats": state.batch_stats}, x, train=True, mask=batch.mask,
            mutable=["batch_stats"],
        )  # fmt: skip
        metrics = batch_metrics(logits, y, batch.mask)
        return metrics.loss_sum / metrics.count, (updates["batch_stats"], metrics)

    grads, (batch_stats, metrics) = jax.grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state.replace(step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state), metrics


@functools.partial(jax.jit, static_argnames=("model", "transform"))
def eval_step(
    params,
    batch_stats,
    images: UInt8[Array, "n 32 32 3"],
    labels: Int[Array, " n"],
    batch: Batch,
    *,
    model: nn.Module,
    transform: Transform,
) -> Metrics:
    """Sums of loss and correct answers over the images that `batch` names, by the running statistics."""
    x = transform_eval(
        jnp.take(images, batch.indices, axis=0, mode="clip"),
        transform,
        dtype=jnp.promote_types(model.dtype, jnp.float32),
    )
    y = jnp.take(labels, batch.indices, mode="clip")
    logits = model.apply({"params": params, "batch_stats": batch_stats}, x, train=False)
    return batch_metrics(logits, y, batch.mask)
