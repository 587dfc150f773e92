"""The lecture's kind of network as a first port would write it: stock Flax, nothing of this project."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp


class StockCNN(nn.Module):
    """Convolution, BatchNorm, ReLU and max pool for each width; then a global average and a linear layer.

    Its parameters have the names and shapes of `cifar_jax.models.CNN` with one convolution a stage. `norm` holds
    nn.BatchNorm's options.
    """

    widths: tuple[int, ...]
    num_classes: int
    norm: dict[str, Any]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, *, train: bool):
        """Logits of images `[batch, height, width, 3]`."""
        for number, width in enumerate(self.widths, start=1):
            types = {"dtype": self.dtype, "param_dtype": self.dtype}
            x = nn.Conv(width, (3, 3), use_bias=False, name=f"conv{number}", **types)(x)
            x = nn.BatchNorm(use_running_average=not train, name=f"norm{number}", **types, **self.norm)(x)
            x = nn.max_pool(nn.relu(x), (2, 2), strides=(2, 2))
        return nn.Dense(self.num_classes, name="linear", dtype=self.dtype, param_dtype=self.dtype)(x.mean((1, 2)))
