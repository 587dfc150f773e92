"""BatchNorm as a pure function: statistics go in and come out.

The normalisation is the same in PyTorch, Flax and the lecture; what differs is how the running averages are kept, and
all three call their number "momentum". Here a `BatchNormRule` says it by name.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float


class BatchStats(NamedTuple):
    """Running mean and variance, one value per channel."""

    mean: Float[Array, " channels"]
    var: Float[Array, " channels"]


class BatchNormRule(NamedTuple):
    """How running averages are kept: `new = keep * old + (1 - keep) * batch`.

    keep: weight of the old average, in [0, 1].
    unbiased: whether the batch variance enters as `n / (n - 1)` times itself (n values per channel).
    """

    keep: float
    unbiased: bool


def torch_rule(momentum: float = 0.1) -> BatchNormRule:
    """PyTorch's rule: `momentum` is the weight of the batch, and the running variance is unbiased.

    Source: torch.nn.BatchNorm2d, note on `momentum`.

    >>> torch_rule(momentum=0.1)
    BatchNormRule(keep=0.9, unbiased=True)
    """
    return BatchNormRule(keep=1.0 - momentum, unbiased=True)


def flax_rule(momentum: float = 0.99) -> BatchNormRule:
    """Flax's rule: `momentum` is the weight of the old average, and the running variance is biased.

    Source: flax.linen.BatchNorm.
    """
    return BatchNormRule(keep=momentum, unbiased=False)


def lecture_rule(momentum: float = 0.1) -> BatchNormRule:
    """The lecture's rule: Flax's formula with PyTorch's number, so the statistics are 90 % the last batch."""
    return flax_rule(momentum)


RULES = {"torch": torch_rule, "flax": flax_rule, "lecture": lecture_rule}


class Moments(NamedTuple):
    """Mean and biased variance of a batch, one value per channel, and the number of values behind each."""

    mean: Float[Array, " channels"]
    var: Float[Array, " channels"]
    count: Float[Array, ""]


def init_stats(channels: int, dtype: DTypeLike = jnp.float32) -> BatchStats:
    """Running statistics before the first batch: mean 0, variance 1."""
    return BatchStats(mean=jnp.zeros((channels,), dtype), var=jnp.ones((channels,), dtype))


def stats_dtype(dtype: DTypeLike) -> jnp.dtype:
    """Type of the statistics of inputs of type `dtype`: float32, or float64 for float64."""
    return jnp.promote_types(dtype, jnp.float32)


def batch_moments(
    x: Float[Array, "batch *spatial channels"], mask: Bool[Array, " batch"] | None, axis_name: str | None = None
) -> Moments:
    """Moments over all axes but the last; `mask` is False for rows that do not count. Without values, all three are 0.

    Inside `jax.shard_map`, those of the whole batch, whose rows lie spread along the mesh axis `axis_name`: each device
    takes the moments of its own rows, and one all-gather puts them together.

    One pass over x, as it is read once for both sums: with any constant s, `var = E[(x - s)^2] - E[x - s]^2`. At s = 0
    that cancels where the mean is large beside the deviation, and is off by 0.25 at a ratio of 1000. Here s is a value
    of x itself, from the middle of the first image that counts (a corner's would show the convolution's padding), which
    is a few deviations from the mean at most, however large that is.
    """
    axes = tuple(range(x.ndim - 1))
    x = without_filling(x.astype(stats_dtype(x.dtype)), mask)
    if x.size == 0:
        zeros = jnp.zeros(x.shape[-1:], x.dtype)
        return Moments(zeros, zeros, jnp.zeros((), x.dtype))  # also of all devices, as each has as many rows
    first = 0 if mask is None else jnp.argmax(mask)
    shift = jax.lax.stop_gradient(x[(first, *(size // 2 for size in x.shape[1:-1]))])
    shifted = without_filling(x - shift.reshape((1,) * (x.ndim - 1) + (-1,)), mask)
    rows = len(x) if mask is None else jnp.sum(mask, dtype=x.dtype)
    count = jnp.asarray(rows * math.prod(x.shape[1:-1]), x.dtype)
    divisor = jnp.maximum(count, 1)
    mean = jnp.sum(shifted, axes) / divisor
    # A constant channel may come out a rounding below 0.
    var = jnp.maximum(jnp.sum(jnp.square(shifted), axes) / divisor - jnp.square(mean), 0)
    moments = Moments(shift + mean, var, count)
    return moments if axis_name is None else gather_moments(moments, axis_name)


def gather_moments(moments: Moments, axis_name: str) -> Moments:
    """Moments of the values of all devices along a mesh axis, from those of each.

    With a device's share w of the values, `mean = sum(w * mean_d)` and `var = sum(w * (var_d + (mean_d - mean)^2))`: no
    difference of large squares, however large the mean.

    Source: Chan, Golub and LeVeque, 1983, Algorithms for computing the sample variance, section 3.
    """
    mine = jnp.concatenate([moments.mean, moments.var, moments.count[None]])
    means, variances, counts = jnp.split(
        jax.lax.all_gather(mine, axis_name), [len(moments.mean), 2 * len(moments.mean)], axis=1
    )
    count = jnp.sum(counts)
    share = counts / jnp.maximum(count, 1)
    mean = jnp.sum(share * means, 0)
    return Moments(mean, jnp.sum(share * (variances + jnp.square(means - mean[None])), 0), count)


def without_filling(
    x: Float[Array, "batch *spatial channels"], mask: Bool[Array, " batch"] | None
) -> Float[Array, "batch *spatial channels"]:
    """`x` with zeros in the rows that do not count. (A product with 0 would keep a NaN.)"""
    return x if mask is None else jnp.where(mask.reshape((-1,) + (1,) * (x.ndim - 1)), x, 0)


def update_stats(stats: BatchStats, moments: Moments, *, rule: BatchNormRule) -> BatchStats:
    """Running statistics after one batch with these moments: as they were where no value counts."""
    mean, var, count = moments
    if rule.unbiased:
        # The maximum only matters for a masked batch of one value, which cannot be refused while tracing.
        var = var * (count / jnp.maximum(count - 1, 1))
    new = BatchStats(
        mean=rule.keep * stats.mean + (1.0 - rule.keep) * mean, var=rule.keep * stats.var + (1.0 - rule.keep) * var
    )
    new = jax.tree.map(lambda old, new: jnp.where(count > 0, new, old), stats, new)
    return jax.lax.stop_gradient(new)


def normalize(
    x: Float[Array, "batch *spatial channels"],
    mean: Float[Array, " channels"],
    var: Float[Array, " channels"],
    scale: Float[Array, " channels"] | None,
    bias: Float[Array, " channels"] | None,
    *,
    epsilon: float,
) -> Float[Array, "batch *spatial channels"]:
    """`(x - mean) / sqrt(var + epsilon) * scale + bias`, computed in the statistics' type, returned in x's."""
    factor = 1.0 / jnp.sqrt(var + epsilon)
    if scale is not None:
        factor = factor * scale
    per_channel = (1,) * (x.ndim - 1) + (-1,)
    y = (x.astype(mean.dtype) - mean.reshape(per_channel)) * factor.reshape(per_channel)
    if bias is not None:
        y = y + bias.reshape(per_channel)
    return y.astype(x.dtype)


def batch_norm(
    x: Float[Array, "batch *spatial channels"],
    scale: Float[Array, " channels"] | None,
    bias: Float[Array, " channels"] | None,
    stats: BatchStats,
    *,
    rule: BatchNormRule,
    train: bool,
    epsilon: float = 1e-5,
    mask: Bool[Array, " batch"] | None = None,
) -> tuple[Float[Array, "batch *spatial channels"], BatchStats]:
    """Normalises each channel over all axes but the last.

    In training by the batch's own mean and biased variance, and the running statistics move one step; otherwise by the
    running statistics, which come back as they were. `scale` and `bias` may be None (not affine). Statistics are kept
    and computed in float32, or float64 for float64 inputs, whatever the type of `x`.

    Args:
      x: `[batch, channels]` or `[batch, ..., channels]`.
      scale: gamma, one value per channel.
      bias: beta, one value per channel.
      stats: running statistics, as `init_stats` makes them.
      rule: how the running averages are kept.
      train: whether to use, and learn from, the batch's statistics.
      epsilon: added to the variance, inside the root.
      mask: False for rows that only fill up the batch. They are taken for zeros, whatever they hold, and join no
        statistic.

    Returns:
      The output, of the shape and type of `x`, and the statistics to pass next time.

    Raises:
      TypeError: `x` is not floating point.
      ValueError: `x` has fewer than two axes; `scale`, `bias` or `stats` has another number of channels; epsilon is
        below 0; in training, epsilon is 0, or there is one value per channel, whose variance says nothing. PyTorch
        refuses the same. As there, an empty batch gives an empty output and leaves the statistics alone.

    Source: Ioffe and Szegedy, 2015 (arXiv:1502.03167), algorithms 1 and 2.

    >>> x = jnp.array([[1.0], [3.0]])
    >>> y, stats = batch_norm(x, None, None, init_stats(1), rule=torch_rule(0.1), train=True, epsilon=1e-9)
    >>> y.ravel().tolist(), [round(float(v[0]), 6) for v in stats]  # unbiased: the batch variance enters as 2, not 1
    ([-1.0, 1.0], [0.2, 1.1])
    """
    check_input(x, scale, bias, stats, epsilon=epsilon, train=train)
    if not train:
        return normalize(x, stats.mean, stats.var, scale, bias, epsilon=epsilon), stats
    y, moments = normalize_batch(x, scale, bias, epsilon=epsilon, mask=mask)
    return y, update_stats(stats, moments, rule=rule)


def normalize_batch(
    x: Float[Array, "batch *spatial channels"],
    scale: Float[Array, " channels"] | None,
    bias: Float[Array, " channels"] | None,
    *,
    epsilon: float,
    mask: Bool[Array, " batch"] | None,
    axis_name: str | None = None,
) -> tuple[Float[Array, "batch *spatial channels"], Moments]:
    """What `batch_norm` does to a batch in training, with the moments from which running averages are kept.

    `axis_name` is that of `batch_moments`, for a batch that is spread over devices.
    """
    if math.prod(x.shape[:-1]) == 1 and axis_name is None:
        raise ValueError(
            f"BatchNorm in training takes more than one value per channel, got an input of shape {x.shape}."
        )
    # Widened once for both uses: the gradient of each would otherwise be rounded to x's type before they are added.
    wide = without_filling(x.astype(stats_dtype(x.dtype)), mask)
    moments = batch_moments(wide, mask, axis_name)
    y = normalize(wide, moments.mean, moments.var, scale, bias, epsilon=epsilon)
    return y.astype(x.dtype), moments


def check_input(x, scale, bias, stats: BatchStats, *, epsilon: float, train: bool) -> None:
    """Raises what `batch_norm` says it raises, but for one value per channel."""
    if epsilon < 0 or (train and epsilon == 0):
        raise ValueError(f"BatchNorm takes an epsilon above 0, or of 0 in evaluation, got {epsilon!r}.")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"BatchNorm takes floating-point input, got {x.dtype}: convert it first.")
    if x.ndim < 2:
        raise ValueError(f"BatchNorm takes [batch, ..., channels], got an input of shape {x.shape}.")
    for name, array in {"scale": scale, "bias": bias, "stats.mean": stats.mean, "stats.var": stats.var}.items():
        if array is not None and array.shape != x.shape[-1:]:
            raise ValueError(
                f"BatchNorm takes a {name} of shape {x.shape[-1:]} for an input of shape {x.shape}, got {array.shape}."
            )
