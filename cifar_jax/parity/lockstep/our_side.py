"""One run of this project's training step, with everything in it laid open.

It is put together from the pieces of `cifar_jax.runs.steps.train_step`. Each piece can be exchanged, which is how tests
plant a fault.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cifar_jax.data.order import steps_per_epoch
from cifar_jax.devices.select import compiler_options
from cifar_jax.nn.losses import Metrics
from cifar_jax.nn.schedules import by_step
from cifar_jax.parity.state_dict import from_state_dict, to_state_dict
from cifar_jax.runs import phases, steps
from cifar_jax.runs.build import Experiment
from cifar_jax.runs.state import TrainState

_MOMENTS = {"momentum_buffer": "trace", "exp_avg": "mu", "exp_avg_sq": "nu"}


class Ours(NamedTuple):
    """Our side's parts.

    inputs: `steps.train_input`, with everything bound but `(state, images, labels, batch)`.
    gradients: `steps.loss_and_grads`, with the network bound.
    tx: the optimizer.
    schedule: the learning rate of a count of updates, as `tx` has it.
    batches: an epoch's batches.
    epoch_loss: an epoch's loss from the metrics of its batches.
    state: where the run starts.
    images, labels: the training images, on the device.
    """

    inputs: Callable
    gradients: Callable
    tx: optax.GradientTransformation
    schedule: optax.Schedule
    batches: Callable[[int], list[steps.Batch]]
    epoch_loss: Callable[[list[Metrics]], float]
    state: TrainState
    images: jax.Array
    labels: jax.Array


def from_experiment(experiment: Experiment) -> Ours:
    """The parts of a run as `experiment.build` makes it from a config."""
    x = experiment
    per_epoch = steps_per_epoch(len(x.train.labels), x.batch_size, x.sampler)
    return Ours(
        inputs=functools.partial(steps.train_input, transform=x.transform, dtype=x.model.dtype),
        gradients=functools.partial(steps.loss_and_grads, model=x.model),
        tx=x.tx,
        schedule=by_step(x.rates, steps_per_epoch=per_epoch),
        batches=lambda epoch: phases.epoch_batches(x, x.draw_epoch(epoch)),
        epoch_loss=epoch_loss,
        state=x.state,
        images=x.train.images,
        labels=x.train.labels,
    )


def epoch_loss(metrics: list[Metrics]) -> float:
    """The mean over images, as training reports it."""
    totals = phases.Totals()
    for batch in metrics:
        totals.add(batch)
    return totals.loss


class OurStep(NamedTuple):
    """What a step made, in PyTorch's names and layouts, padded rows left out.

    indices: the images that counted.
    """

    lr: np.ndarray
    indices: np.ndarray
    input: np.ndarray
    logits: np.ndarray
    metrics: Metrics
    gradient: dict[str, np.ndarray]
    state_dict: dict[str, np.ndarray]
    moments: dict[str, dict[str, np.ndarray]]


# Compiled once for each part, so that runs that share a part share its program.
@functools.cache
def _compiled(part: Callable) -> Callable:
    # Or float64, which JAX's setting tells; never half.
    return jax.jit(part, compiler_options=compiler_options(jnp.float32))


@functools.cache
def _update(tx: optax.GradientTransformation) -> Callable:
    return _compiled(functools.partial(steps.apply_gradients, tx=tx))


def take_step(
    ours: Ours, state: TrainState, batch: steps.Batch, *, gradient: dict[str, np.ndarray] | None = None
) -> tuple[TrainState, OurStep]:
    """One update from `state`, with its own gradients or, to test the optimizer alone, with those given."""
    x, y = _compiled(ours.inputs)(state, ours.images, ours.labels, batch)
    new = _compiled(ours.gradients)(state.params, state.batch_stats, x, y, batch.mask)
    lr = _compiled(ours.schedule)(state.step)
    grads = new.grads if gradient is None else from_state_dict(gradient, state.params, source="The gradient").params
    state = _update(ours.tx)(state, grads, new.batch_stats)
    count = len(batch.indices) if batch.mask is None else int(batch.mask.sum())
    return state, OurStep(
        lr=np.asarray(lr),
        indices=np.asarray(batch.indices)[:count],
        input=np.asarray(x)[:count],
        logits=np.asarray(new.logits)[:count],
        metrics=jax.device_get(new.metrics),
        gradient=to_state_dict(new.grads),
        state_dict=to_state_dict(state.params, state.batch_stats, updates=int(state.step)),
        moments=read_moments(state.opt_state),
    )


def rates(ours: Ours, count: int) -> np.ndarray:
    """The learning rates of the first `count` updates, each computed by compiled code, one at a time as in training."""
    every = jax.jit(lambda counts: jax.lax.map(ours.schedule, counts))
    return np.asarray(every(np.arange(count, dtype=np.int32)))


def load(state: TrainState, arrays: dict[str, np.ndarray], moments: dict[str, dict[str, np.ndarray]]) -> TrainState:
    """`state` with the parameters, statistics and moments of a PyTorch run; its counts and key stay."""
    params, batch_stats, _ = from_state_dict(arrays, state.params, state.batch_stats, source="The state_dict")

    def fill(node):
        fields = {field: name for name, field in _MOMENTS.items() if _has_moments(node) and name in moments}
        trees = {
            field: from_state_dict(moments[name], state.params).params
            for field, name in fields.items()
            if hasattr(node, field)
        }
        return node._replace(**trees) if trees else node

    opt_state = jax.tree.map(fill, state.opt_state, is_leaf=_has_moments)
    return jax.device_put(state.replace(params=params, batch_stats=batch_stats, opt_state=opt_state))


def read_moments(opt_state) -> dict[str, dict[str, np.ndarray]]:
    """An optax state's running averages of gradients, by torch's names."""
    nodes = [node for node in jax.tree.leaves(opt_state, is_leaf=_has_moments) if _has_moments(node)]
    return {
        name: to_state_dict(getattr(node, field))
        for node in nodes
        for name, field in _MOMENTS.items()
        if hasattr(node, field)
    }


def _has_moments(node) -> bool:
    return isinstance(node, optax.TraceState | optax.ScaleByAdamState)
