"""Double precision in JAX for a while, and single precision inside of it."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """jax_enable_x64 for a while; ranks are promoted, as they are unless a program forbids it."""
    before = jax.config.jax_enable_x64, jax.config.jax_numpy_rank_promotion
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_numpy_rank_promotion", "allow")
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before[0])
        jax.config.update("jax_numpy_rank_promotion", before[1])


@contextlib.contextmanager
def native_precision() -> Iterator[None]:
    """JAX's usual types inside of `double_precision`."""
    jax.config.update("jax_enable_x64", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", True)


def as_single(array: Any) -> jax.Array:
    """An array in the types that JAX has without jax_enable_x64."""
    array = np.asarray(array)
    narrow = {"f": np.float32, "i": np.int32, "u": np.uint32}
    return jnp.asarray(array.astype(narrow[array.dtype.kind]) if array.dtype.itemsize == 8 else array)
