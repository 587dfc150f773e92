"""The lecture's kind of network as a first port would write it: stock Flax, nothing of this project."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class StockCNN(nn.Module):
    """Convolution, BatchNorm, ReLU and max pool for each width; then a global average and a linear layer.

    Its parameters have the names and shapes of `cifar_jax.nn.models.CNN` with one convolution a stage. Defaults are
    Flax's own.
    """

    widths: tuple[int, ...]
    num_classes: int
    norm_momentum: float = 0.99
    activation: Callable = nn.relu
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, *, train: bool):
        """Logits of images `[batch, height, width, 3]`."""
        for number, width in enumerate(self.widths, start=1):
            types = {"dtype": self.dtype, "param_dtype": self.dtype}
            x = nn.Conv(width, (3, 3), use_bias=False, name=f"conv{number}", **types)(x)
            x = nn.BatchNorm(use_running_average=not train, name=f"norm{number}", momentum=self.norm_momentum, **types)(
                x
            )
            x = nn.max_pool(self.activation(x), (2, 2), strides=(2, 2))
        return nn.Dense(self.num_classes, name="linear", dtype=self.dtype, param_dtype=self.dtype)(x.mean((1, 2)))


def draw(network: nn.Module, x, seed: int = 0) -> dict[str, Any]:
    """Variables of a network for inputs like `x`, drawn by NumPy: compiling Flax's own draws would take seconds.

    Kernels have PyTorch's deviation; scales and statistics are what BatchNorm starts with.
    """
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.asarray(x), train=False))
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        name = path[-1].key
        if name == "kernel":
            bound = 1 / np.sqrt(np.prod(leaf.shape[:-1]))
            return jnp.asarray(rng.uniform(-bound, bound, leaf.shape), leaf.dtype)
        return jnp.asarray(np.full(leaf.shape, name in ("scale", "var")), leaf.dtype)

    return jax.tree.map_with_path(fill, shapes)
