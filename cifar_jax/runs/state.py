"""Everything that training changes, as one pytree."""

import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from cifar_jax.devices.select import options_for_one_run


class TrainState(flax.struct.PyTreeNode):
    """What a training step takes and returns.

    step: number of updates made so far, int32 `[]`.
    params: the network's parameters.
    batch_stats: BatchNorm's running statistics.
    opt_state: the optimizer's.
    key: a typed random key that never changes; the randomness of a step is `fold_in(key, step)`, so that a resumed
      run draws the same.
    """

    # Any, not arrays: JAX also builds this node around shapes, shardings and None.
    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any
    key: Any


def create_state(model: nn.Module, tx: optax.GradientTransformation, *, init_key, key, image_size: int) -> TrainState:
    """A fresh state. `init_key` draws the weights, `key` all that is random in training."""
    init = _compiled_init(tuple(sorted(options_for_one_run().items())))
    params, batch_stats, opt_state = init(init_key, model=model, tx=tx, image_size=image_size)
    return TrainState(
        step=jnp.zeros((), jnp.int32), params=params, batch_stats=batch_stats, opt_state=opt_state, key=key
    )


# One compiled call, for all seeds: op by op, initialising CNN10 takes seconds.
@functools.cache
def _compiled_init(options):
    return jax.jit(_init, static_argnames=("model", "tx", "image_size"), compiler_options=dict(options))


def _init(init_key, *, model, tx, image_size):
    variables = model.init(init_key, jnp.zeros((2, image_size, image_size, 3)), train=False)
    return variables["params"], variables["batch_stats"], tx.init(variables["params"])
