"""Which images make up each batch of an epoch, from `(key, epoch)` alone, so that a resumed run sees the same."""

import jax
import numpy as np
from jaxtyping import Array, Bool, Int32, Key

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
    missing = steps * batch_size - len(order)
    if missing <= 0:
        return order[: steps * batch_size].reshape(steps, batch_size), None
    indices = np.concatenate([order, np.zeros(missing, np.int32)]).reshape(steps, batch_size)
    return indices, (np.arange(steps * batch_size) < len(order)).reshape(steps, batch_size)
