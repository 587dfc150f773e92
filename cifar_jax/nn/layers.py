"""The layers of the lecture's networks as Linen modules, and PyTorch's default initial weights."""

import functools
import math
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from cifar_jax.nn import batch_norm
from cifar_jax.nn.batch_norm import BatchNormRule, BatchStats, Moments

Initializer = Callable[..., Array]

# PyTorch's kaiming_uniform_(a=sqrt(5)) comes to U(-1/sqrt(fan_in), 1/sqrt(fan_in)): torch.nn.Conv2d, torch.nn.Linear.
torch_kernel_init: Initializer = nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")


def torch_bias_init(fan_in: int) -> Initializer:
    """PyTorch's default bias of a layer with `fan_in` inputs per output: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = 1.0 / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


@jax.custom_vjp
def max_pool(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch rows columns channels"]:
    """The largest value of each 2x2 window; a last odd row or column is left out.

    The gradient goes to the first of equal values, row by row. `nn.max_pool` means the same, but its gradient searches
    the windows again (select-and-scatter), which a CPU is slow at; this one remembers where the largest stood.

    Source: torch.nn.MaxPool2d(2).
    """
    return _pool(x)[0]


def _windows(x):
    """What stands at each of the four places of all windows."""
    rows, columns = x.shape[1] // 2, x.shape[2] // 2
    windows = x[:, : 2 * rows, : 2 * columns].reshape(-1, rows, 2, columns, 2, x.shape[3])
    return [windows[:, :, i, :, j] for i in (0, 1) for j in (0, 1)]


def _pool(x):
    a, b, c, d = _windows(x)
    upper, lower = jnp.maximum(a, b), jnp.maximum(c, d)
    # Exactly one place. Comparing with the result instead would lose gradients: compiled code may compute x twice, with
    # other roundings, and then no value equals the largest.
    place = jnp.where(lower > upper, 2 + (d > c).astype(jnp.uint8), (b > a).astype(jnp.uint8))
    return jnp.maximum(upper, lower), place


def _max_pool_forward(x):
    y, place = _pool(x)
    # The gradient's shape: residuals are arrays, and this one takes no memory.
    return y, (place, jnp.zeros((x.shape[1], x.shape[2], 0)))


def _max_pool_backward(kept, grad):
    place, shape = kept
    return (_to_places(grad, place, shape.shape[:2]),)


def _to_places(grad, place, size):
    """The gradient of each window at its place, of four, in images of this height and width; 0 elsewhere."""
    batch, rows, columns, channels = place.shape
    places = jnp.arange(4, dtype=jnp.uint8).reshape(1, 1, 2, 1, 2, 1)
    spread = jnp.where(place[:, :, None, :, None] == places, grad[:, :, None, :, None], 0)
    spread = spread.reshape(batch, 2 * rows, 2 * columns, channels)
    return jnp.pad(spread, ((0, 0), (0, size[0] - 2 * rows), (0, size[1] - 2 * columns), (0, 0)))


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def norm_relu(
    x: Float[Array, "batch height width channels"],
    scale: Float[Array, " channels"] | None,
    bias: Float[Array, " channels"] | None,
    mask: Bool[Array, " batch"] | None,
    epsilon: float,
    pool: bool,
) -> tuple[Float[Array, "batch rows columns channels"], Moments]:
    """`max_pool(relu(batch_norm(x)))` of a batch in training, or without the pool, and the batch's moments.

    The gradient is that of the three, worked out by hand: it reads x and the incoming gradient twice, once for the two
    sums over the batch and once for the result; of a pool's x, the sums need the values that won only. Left to itself,
    JAX asks for three sums, and XLA writes the gradient between ReLU and BatchNorm out to memory. No gradient flows
    through the moments.

    Source: Ioffe and Szegedy, 2015 (arXiv:1502.03167), section 3, for BatchNorm's.
    """
    return _norm_relu(x, scale, bias, mask, epsilon, pool)[:2]


def _norm_relu(x, scale, bias, mask, epsilon, pool):
    y, moments = batch_norm.normalize_batch(x, scale, bias, epsilon=epsilon, mask=mask)
    y = nn.relu(y)
    if not pool:
        return y, moments, None
    y, place = _pool(y)
    a, b, c, d = _windows(x)
    winner = jnp.where(place < 2, jnp.where(place == 0, a, b), jnp.where(place == 2, c, d))
    return y, moments, (winner, jnp.where(y > 0, place, jnp.uint8(4)))  # 4: nowhere, as ReLU stopped all four


def _norm_relu_forward(x, scale, bias, mask, epsilon, pool):
    y, moments, pooled = _norm_relu(x, scale, bias, mask, epsilon, pool)
    # The barrier keeps them in memory. XLA would rather work them out again from x, which is four times as large.
    return (y, moments), (x, scale, bias, mask, moments, jax.lax.optimization_barrier(pooled))


def _norm_relu_backward(epsilon, pool, kept, grads):
    x, scale, bias, mask, (mean, var, count), pooled = kept
    axes, per_channel = tuple(range(x.ndim - 1)), (1,) * (x.ndim - 1) + (-1,)
    grad = grads[0].astype(mean.dtype)
    centred = x.astype(mean.dtype) - mean.reshape(per_channel)
    inverse = 1.0 / jnp.sqrt(var + epsilon)
    factor = inverse if scale is None else inverse * scale
    if pool:
        winner, place = pooled
        passed = jnp.where(place < 4, grad, 0)
        total = jnp.sum(passed, axes)
        projection = jnp.sum(passed * (winner.astype(mean.dtype) - mean.reshape(per_channel)), axes)
        grad = _to_places(grad, place, x.shape[1:3])
    else:
        normalized = centred * factor.reshape(per_channel)
        grad = jnp.where((normalized if bias is None else normalized + bias.reshape(per_channel)) > 0, grad, 0)
        total, projection = jnp.sum(grad, axes), jnp.sum(grad * centred, axes)
    slope = (projection * jnp.square(inverse) / count).reshape(per_channel)
    through_moments = (total / count).reshape(per_channel) + centred * slope
    if mask is not None:
        through_moments = jnp.where(mask.reshape((-1,) + (1,) * (x.ndim - 1)), through_moments, 0)
    return (
        ((grad - through_moments) * factor.reshape(per_channel)).astype(x.dtype),
        None if scale is None else projection * inverse,
        None if bias is None else total,
        None,
    )


norm_relu.defvjp(_norm_relu_forward, _norm_relu_backward)


class BatchNorm(nn.Module):
    """BatchNorm over all axes but the last, with its running statistics in the collection `batch_stats`.

    Parameters `scale` and `bias` and statistics `mean` and `var`, each `[channels]`. In training the caller asks for
    the new statistics: `y, new = module.apply(variables, x, train=True, mutable=["batch_stats"])`.

    compare: further rules by name; what they would have kept is in `mean_NAME` and `var_NAME`. See `running_stats`.

    Raises:
      ValueError: in training when `batch_stats` is not mutable, or with one value per channel.
    """

    rule: BatchNormRule
    epsilon: float = 1e-5
    affine: bool = True
    compare: tuple[tuple[str, BatchNormRule], ...] = ()

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
        if not train:
            (mean, var), _ = kept[0]
            return self._evaluate(x, mean.value, var.value, scale, bias)
        y, moments = self._train(x, scale, bias, mask)
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

    def _evaluate(self, x, mean, var, scale, bias):
        return batch_norm.normalize(x, mean, var, scale, bias, epsilon=self.epsilon)

    def _train(self, x, scale, bias, mask):
        return batch_norm.normalize_batch(x, scale, bias, epsilon=self.epsilon, mask=mask)

    def _variables(self, suffix, initial):
        return (
            self.variable("batch_stats", f"mean{suffix}", lambda: initial.mean),
            self.variable("batch_stats", f"var{suffix}", lambda: initial.var),
        )


class BatchNormRelu(BatchNorm):
    """BatchNorm, then ReLU and, with `pool`, a 2x2 max pool, in one function; for images. See `norm_relu`."""

    pool: bool = False

    def _evaluate(self, x, mean, var, scale, bias):
        y = nn.relu(super()._evaluate(x, mean, var, scale, bias))
        return max_pool(y) if self.pool else y

    def _train(self, x, scale, bias, mask):
        return norm_relu(x, scale, bias, mask, self.epsilon, self.pool)


def running_stats(batch_stats: Mapping[str, Mapping], name: str | None = None) -> dict[str, dict]:
    """The collection `batch_stats` with one rule's running averages only, that `name`d in `BatchNorm.compare`.

    None takes the network's own rule. The result has one structure whatever the rule, so one evaluation serves all.
    """
    suffix = "" if name is None else f"_{name}"
    return {
        layer: {"mean": stats[f"mean{suffix}"], "var": stats[f"var{suffix}"]} for layer, stats in batch_stats.items()
    }
