"""The layers of the lecture's networks as Linen modules, and PyTorch's default initial weights."""

import math
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from cifar_jax.nn import batch_norm
from cifar_jax.nn.batch_norm import BatchNormRule, BatchStats

Initializer = Callable[..., Array]

# PyTorch's kaiming_uniform_(a=sqrt(5)) comes to U(-1/sqrt(fan_in), 1/sqrt(fan_in)): torch.nn.Conv2d, torch.nn.Linear.
torch_kernel_init: Initializer = nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")


def torch_bias_init(fan_in: int) -> Initializer:
    """PyTorch's default bias of a layer with `fan_in` inputs per output: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = 1.0 / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def max_pool(x: Shaped[Array, "*batch height width channels"]) -> Shaped[Array, "*batch rows columns channels"]:
    """The largest value of each 2x2 window; a last odd row or column is left out.

    The gradient goes to the first of equal values, row by row.

    Raises:
      ValueError: `x` is neither an image nor a batch of images, or is less than two pixels high or wide.

    Source: torch.nn.MaxPool2d(2).
    """
    check_pool(x.shape)
    return nn.max_pool(x, (2, 2), strides=(2, 2))


def check_pool(shape: tuple) -> None:
    """Raises what `max_pool` says it raises."""
    if len(shape) not in (3, 4) or min(shape[-3:-1]) < 2 or shape[-1] == 0:
        raise ValueError(
            f"max_pool takes [height, width, channels] or a batch of it, of two pixels at least each way, got {shape}."
        )


class BatchNorm(nn.Module):
    """BatchNorm over all axes but the last, with its running statistics in the collection `batch_stats`.

    Parameters `scale` and `bias` and statistics `mean` and `var`, each `[channels]`. In training the caller asks for
    the new statistics: `y, new = module.apply(variables, x, train=True, mutable=["batch_stats"])`.

    compare: further rules by name; what they would have kept is in `mean_NAME` and `var_NAME`. See `running_stats`.
    axis_name: inside `jax.shard_map`, the mesh axis over which to take the statistics of a batch; None takes each
      device's own.

    Raises:
      ValueError: in training when `batch_stats` is not mutable; and what `batch_norm.batch_norm` raises.
      TypeError: the input is not floating point.
    """

    rule: BatchNormRule
    epsilon: float = 1e-5
    affine: bool = True
    compare: tuple[tuple[str, BatchNormRule], ...] = ()
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *spatial channels"], *, train: bool, mask: Bool[Array, " batch"] | None = None
    ) -> Float[Array, "batch ... channels"]:
        """Normalises `x`; `mask` is False for rows that only fill up the batch."""
        channels, dtype = x.shape[-1], batch_norm.stats_dtype(x.dtype)
        initial = batch_norm.init_stats(channels, dtype)
        kept = [(self._variables("", initial), self.rule)]
        if train or self.is_initializing():
            kept += [(self._variables(f"_{name}", initial), rule) for name, rule in self.compare]
        scale = self.param("scale", nn.initializers.ones, (channels,), dtype) if self.affine else None
        bias = self.param("bias", nn.initializers.zeros, (channels,), dtype) if self.affine else None
        (mean, var), _ = kept[0]
        stats = BatchStats(mean.value, var.value)
        batch_norm.check_input(x, scale, bias, stats, epsilon=self.epsilon, train=train)
        if not train:
            return batch_norm.normalize(x, mean.value, var.value, scale, bias, epsilon=self.epsilon)
        y, moments = self.normalize_batch(x, scale, bias, mask)
        if self.is_initializing():
            return y
        if not self.is_mutable_collection("batch_stats"):
            raise ValueError(
                "BatchNorm with train=True updates its running statistics: call apply(..., mutable=['batch_stats']) "
                "and keep what it returns, or pass train=False to use the stored ones."
            )
        for (mean, var), rule in kept:
            stats = BatchStats(mean.value, var.value)
            mean.value, var.value = batch_norm.update_stats(stats, moments, rule=rule)
        return y

    def normalize_batch(self, x, scale, bias, mask):
        """The output in training and the moments to learn from; `fused.NormRelu` has another."""
        return batch_norm.normalize_batch(x, scale, bias, epsilon=self.epsilon, mask=mask, axis_name=self.axis_name)

    def _variables(self, suffix, initial):
        return (
            self.variable("batch_stats", f"mean{suffix}", lambda: initial.mean),
            self.variable("batch_stats", f"var{suffix}", lambda: initial.var),
        )


def running_stats(batch_stats: Mapping[str, Mapping], name: str | None = None) -> dict[str, dict]:
    """The collection `batch_stats` with one rule's running averages only, that `name`d in `BatchNorm.compare`.

    None takes the network's own rule. The result has one structure whatever the rule, so one evaluation serves all.
    """
    suffix = "" if name is None else f"_{name}"
    return {
        layer: {"mean": stats[f"mean{suffix}"], "var": stats[f"var{suffix}"]} for layer, stats in batch_stats.items()
    }
