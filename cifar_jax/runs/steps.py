"""Training and evaluation over a data set that lies on the device: one compiled step, or one compiled epoch."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float, Int, Int32, UInt8

from cifar_jax.data.order import cut, split_batches
from cifar_jax.devices.sharding import AXIS, DataParallel, constrain, over_devices
from cifar_jax.nn.losses import Metrics, batch_metrics
from cifar_jax.nn.transforms import Transform, transform_eval, transform_train
from cifar_jax.runs.state import TrainState


class Batch(NamedTuple):
    """Which images make up a batch; of a fixed length, so that one compilation serves them all.

    indices: positions in the data set; None where the images at hand are the batch's own, in its order.
    mask: False for rows that only fill up a last, ragged batch; None where every batch is full.
    flips: which images are mirrored in training, where that was drawn before; None draws it in the step.
    """

    indices: Int32[Array, " batch"] | None
    mask: Bool[Array, " batch"] | None
    flips: Bool[Array, " batch"] | None = None


class Gradients(NamedTuple):
    """What a batch says before the update; logits and metrics are those of training mode."""

    grads: Any
    batch_stats: Any
    logits: Float[Array, "batch classes"]
    metrics: Metrics


def train_input(
    state: TrainState,
    images: UInt8[Array, "n 32 32 3"],
    labels: Int[Array, " n"],
    batch: Batch,
    *,
    transform: Transform,
    dtype: DTypeLike,
) -> tuple[Float[Array, "batch size size 3"], Int[Array, " batch"]]:
    """The images and labels that `batch` names, transformed; the randomness is that of `state`'s step."""
    images, labels = _select(images, labels, batch)
    x = transform_train(
        images,
        jax.random.fold_in(state.key, state.step),
        transform,
        mask=batch.mask,
        flips=batch.flips,
        dtype=jnp.promote_types(dtype, jnp.float32),
    )
    return x, labels


def _select(images, labels, batch: Batch):
    if batch.indices is None:
        return images, labels
    return jnp.take(images, batch.indices, axis=0, mode="clip"), jnp.take(labels, batch.indices, mode="clip")


def loss_and_grads(
    params,
    batch_stats,
    x: Float[Array, "batch size size 3"],
    labels: Int[Array, " batch"],
    mask: Bool[Array, " batch"] | None,
    *,
    model: nn.Module,
    count: int | None = None,
) -> Gradients:
    """Gradients of the mean loss over the images of a batch, and the statistics after it.

    `count` divides the summed loss in place of the number of images.
    """

    def loss_fn(params):
        logits, updates = model.apply(
            {"params": params, "batch_stats": batch_stats}, x, train=True, mask=mask, mutable=["batch_stats"]
        )
        metrics = batch_metrics(logits, labels, mask)
        return metrics.loss_sum / (metrics.count if count is None else count), (updates["batch_stats"], logits, metrics)

    grads, (batch_stats, logits, metrics) = jax.grad(loss_fn, has_aux=True)(params)
    return Gradients(grads, batch_stats, logits, metrics)


def apply_gradients(state: TrainState, grads, batch_stats, *, tx: optax.GradientTransformation) -> TrainState:
    """The state after one update."""
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state.replace(step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state)


def split_epoch(
    order: Int32[ArrayLike, " n"],
    flips: Bool[ArrayLike, " n"] | None,
    *,
    batch_size: int,
    sampler: str,
    parallel: DataParallel | None = None,
) -> Batch:
    """All batches of an epoch as one, each array with a leading axis of steps.

    Where batches do not divide by the devices of `parallel`, every one is filled up and masked.
    """
    indices, mask = split_batches(order, batch_size, sampler)
    batches = Batch(indices, mask, None if flips is None else cut(flips, *indices.shape))
    missing = 0 if parallel is None else -batch_size % parallel.devices
    if not missing:
        return batches
    if mask is None:
        batches = batches._replace(mask=jnp.ones(indices.shape, bool))
    return jax.tree.map(lambda array: jnp.pad(array, ((0, 0), (0, missing))), batches)


def update(
    state: TrainState,
    images: UInt8[Array, "n 32 32 3"],
    labels: Int[Array, " n"],
    batch: Batch,
    *,
    model: nn.Module,
    tx: optax.GradientTransformation,
    transform: Transform,
    parallel: DataParallel | None = None,
) -> tuple[TrainState, Metrics]:
    """One update on the images that `batch` names, out of the whole data set.

    Returns:
      The next state, and the sums of loss and correct answers over the batch, as the network gave them before the
      update and in training mode.
    """
    batch = constrain(batch, parallel and parallel.rows)
    x, y = train_input(state, images, labels, batch, transform=transform, dtype=model.dtype)
    gradients = functools.partial(loss_and_grads, model=model)
    if parallel is not None:
        if parallel.sync == "global":
            gradients = functools.partial(loss_and_grads, model=model.clone(norm_axis_name=AXIS))
        gradients = over_devices(gradients, parallel)
    grads, batch_stats, _, metrics = gradients(state.params, state.batch_stats, x, y, batch.mask)
    state = apply_gradients(state, grads, batch_stats, tx=tx)
    return constrain((state, metrics), parallel and parallel.everywhere)


def score(
    params,
    batch_stats,
    images: UInt8[Array, "n 32 32 3"],
    labels: Int[Array, " n"],
    batch: Batch,
    *,
    model: nn.Module,
    transform: Transform,
    parallel: DataParallel | None = None,
) -> Metrics:
    """Sums of loss and correct answers over the images that `batch` names, by the running statistics."""
    batch = constrain(batch, parallel and parallel.rows)
    images, labels = _select(images, labels, batch)
    x = transform_eval(images, transform, dtype=jnp.promote_types(model.dtype, jnp.float32))
    logits = model.apply({"params": params, "batch_stats": batch_stats}, x, train=False)
    return constrain(batch_metrics(logits, labels, batch.mask), parallel and parallel.everywhere)


def update_all(
    state: TrainState,
    images: UInt8[Array, "n 32 32 3"],
    labels: Int[Array, " n"],
    order: Int32[Array, " n"],
    flips: Bool[Array, " n"] | None,
    *,
    batch_size: int,
    sampler: str,
    parallel: DataParallel | None = None,
    **parts,
) -> tuple[TrainState, Metrics]:
    """An epoch of updates on the images in `order`; `parts` are those of `update`.

    Returns:
      The state after it, and each step's metrics, with a leading axis of steps.
    """
    batches = split_epoch(order, flips, batch_size=batch_size, sampler=sampler, parallel=parallel)
    return jax.lax.scan(
        lambda state, batch: update(state, images, labels, batch, parallel=parallel, **parts), state, batches
    )


def score_all(
    params,
    batch_stats,
    images: UInt8[Array, "n 32 32 3"],
    labels: Int[Array, " n"],
    *,
    batch_size: int,
    parallel: DataParallel | None = None,
    **parts,
) -> Metrics:
    """Metrics of every image, in batches: each with a leading axis of steps; `parts` are those of `score`."""
    order = jnp.arange(len(labels), dtype=jnp.int32)
    batches = split_epoch(order, None, batch_size=batch_size, sampler="shuffle", parallel=parallel)
    return jax.lax.map(
        lambda batch: score(params, batch_stats, images, labels, batch, parallel=parallel, **parts), batches
    )


# A state that is passed in is donated: its buffers are reused, and it must not be read again.
train_step = jax.jit(update, static_argnames=("model", "tx", "transform", "parallel"), donate_argnames="state")
eval_step = jax.jit(score, static_argnames=("model", "transform", "parallel"))
train_epoch = jax.jit(
    update_all, static_argnames=("batch_size", "sampler", "model", "tx", "transform", "parallel"),
    donate_argnames="state",
)  # fmt: skip
eval_epoch = jax.jit(score_all, static_argnames=("batch_size", "model", "transform", "parallel"))
