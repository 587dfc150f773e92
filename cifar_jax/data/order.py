"""Which images make up each batch of an epoch, from `(key, epoch)` alone, so that a resumed run sees the same."""

import jax
import numpy as np
from jaxtyping import Array, Bool, Int32, Key, Shaped

SAMPLERS = ("shuffle", "whole_batches")


def steps_per_epoch(n: int, batch_size: int, sampler: str) -> int:
    """Number of batches in an epoch of n images: all of them, or only the whole ones."""
    return n // batch_size if sampler == "whole_batches" else -(-n // batch_size)


def epoch_order(key: Key[Array, ""], epoch: int, n: int) -> Int32[np.ndarray, " n"]:
    """The images' order in this epoch: a permutation of `range(n)`."""
    return np.asarray(jax.random.permutation(jax.random.fold_in(key, epoch), n)).astype(np.int32)


def split_batches(
    order: Int32[np.ndarray, " n"], batch_size: int, sampler: str = "shuffle"
) -> tuple[Int32[np.ndarray, "steps batch"], Bool[np.ndarray, "steps batch"] | None]:
    """Cuts an order into batches of one length.

    "shuffle" keeps every image, as PyTorch's DataLoader with `drop_last=False` does: a last, ragged batch is filled up
    with image 0 and masked. "whole_batches" drops the remainder, as the lecture's CIFAR-10 sampler does, which shuffles
    again as soon as a whole batch no longer fits.

    Returns:
      Positions `[steps, batch]`, and a mask that is False for filled-up rows, or None where every batch is full.

    >>> split_batches(np.array([2, 0, 1], np.int32), 2)[0].tolist()
    [[2, 0], [1, 0]]
    """
    steps = steps_per_epoch(len(order), batch_size, sampler)
    indices = cut(order, steps, batch_size)
    if indices.size <= len(order):
        return indices, None
    return indices, cut(np.ones(len(order), bool), steps, batch_size)


def cut(values: Shaped[np.ndarray, " n"], steps: int, batch_size: int) -> Shaped[np.ndarray, "{steps} {batch_size}"]:
    """One value an image, cut into batches; what is missing is filled up with 0, what is over is dropped."""
    filled = np.zeros(steps * batch_size, values.dtype)
    filled[: len(values)] = values[: len(filled)]
    return filled.reshape(steps, batch_size)
