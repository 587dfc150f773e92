"""Which images make up each batch of an epoch, from `(key, epoch)` alone, so that a resumed run sees the same."""

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Int, Int32, Key, Shaped

SAMPLERS = ("shuffle", "whole_batches")


def steps_per_epoch(n: int, batch_size: int, sampler: str) -> int:
    """Number of batches in an epoch of n images: all of them, or only the whole ones."""
    return n // batch_size if sampler == "whole_batches" else -(-n // batch_size)


@functools.partial(jax.jit, static_argnames="n")
def epoch_order(key: Key[Array, ""], epoch: Int[ArrayLike, ""], n: int) -> Int32[Array, " n"]:
    """The images' order in this epoch: a permutation of `range(n)`, drawn on the device."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), n).astype(jnp.int32)


def split_batches(
    order: Int32[ArrayLike, " n"], batch_size: int, sampler: str = "shuffle"
) -> tuple[Int32[Array, "steps batch"], Bool[Array, "steps batch"] | None]:
    """Cuts an order into batches of one length.

    "shuffle" keeps every image, as PyTorch's DataLoader with `drop_last=False` does: a last, ragged batch is filled up
    with image 0 and masked. "whole_batches" drops the remainder, as the lecture's CIFAR-10 sampler does, which shuffles
    again as soon as a whole batch no longer fits.

    Returns:
      Positions `[steps, batch]`, and a mask that is False for filled-up rows, or None where every batch is full.

    >>> split_batches(jnp.array([2, 0, 1], jnp.int32), 2)[0].tolist()
    [[2, 0], [1, 0]]
    """
    steps = steps_per_epoch(len(order), batch_size, sampler)
    mask = None if steps * batch_size <= len(order) else cut(jnp.ones(len(order), bool), steps, batch_size)
    return cut(order, steps, batch_size), mask


def cut(values: Shaped[ArrayLike, " n"], steps: int, batch_size: int) -> Shaped[Array, "{steps} {batch_size}"]:
    """One value an image, cut into batches; what is missing is filled up with 0, what is over is dropped."""
    values = jnp.asarray(values)[: steps * batch_size]
    return jnp.pad(values, (0, steps * batch_size - len(values))).reshape(steps, batch_size)
