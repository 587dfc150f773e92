"""The layers of the lecture's networks as Linen modules, and PyTorch's default initial weights."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from cifar_jax.batch_norm import BatchNormRule, BatchStats, batch_norm, init_stats, stats_dtype

Initializer = Callable[..., Array]

# PyTorch's kaiming_uniform_(a=sqrt(5)) comes to U(-1/sqrt(fan_in), 1/sqrt(fan_in)): torch.nn.Conv2d, torch.nn.Linear.
torch_kernel_init: Initializer = nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")


def torch_bias_init(fan_in: int) -> Initializer:
    """PyTorch's default bias of a layer with `fan_in` inputs per output: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = 1.0 / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class BatchNorm(nn.Module):
    """BatchNorm over all axes but the last, with its running statistics in the collection `batch_stats`.

    Parameters `scale` and `bias` and statistics `mean` and `var`, each `[channels]`. In training the caller asks for
    the new statistics: `y, new = module.apply(variables, x, train=True, mutable=["batch_stats"])`.

    Raises:
      ValueError: in training when `batch_stats` is not mutable, or with one value per channel.
    """

    rule: BatchNormRule
    epsilon: float = 1e-5
    affine: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *spatial channels"], *, train: bool, mask: Bool[Array, " batch"] | None = None
    ) -> Float[Array, "batch *spatial channels"]:
        """Normalises `x`; `mask` is False for rows that only fill up the batch."""
        channels, dtype = x.shape[-1], stats_dtype(x.dtype)
        initial = init_stats(channels, dtype)
        mean = self.variable("batch_stats", "mean", lambda: initial.mean)
        var = self.variable("batch_stats", "var", lambda: initial.var)
        scale = self.param("scale", nn.initializers.ones, (channels,), dtype) if self.affine else None
        bias = self.param("bias", nn.initializers.zeros, (channels,), dtype) if self.affine else None
        updates = train and not self.is_initializing()
        if updates and not self.is_mutable_collection("batch_stats"):
            raise ValueError(
                "BatchNorm with train=True updates its running statistics: call apply(..., mutable=['batch_stats']) "
                "and keep what it returns, or pass train=False to use the stored ones."
            )
        y, stats = batch_norm(
            x, scale, bias, BatchStats(mean.value, var.value), rule=self.rule, train=train, epsilon=self.epsilon,
            mask=mask,
        )  # fmt: skip
        if updates:
            mean.value, var.value = stats
        return y
