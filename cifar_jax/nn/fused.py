"""Skip at first reading: equals relu and max_pool of batch_norm, and flax.linen.Conv, with gradients made by hand.

`fuse(model)` is the network for runs: it has the plain network's parameters, statistics, outputs and gradients (a test
compares them to 1e-12 in double precision) and is faster. In training its intermediates are not the plain network's:
what comes out of `norm1` has been through ReLU and the pool. To look inside, apply the plain network to the same
variables.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from cifar_jax.nn import batch_norm
from cifar_jax.nn.batch_norm import Moments, stats_dtype
from cifar_jax.nn.layers import BatchNorm, check_pool, max_pool
from cifar_jax.nn.models import CNN


def keep_in_memory(tree, *platforms: str):
    """Has XLA write these arrays to memory and read them where they are used, in programs for these platforms.

    XLA may otherwise work them out once more at each use. On a TPU that is the faster way: barriers cost it 6 % of a
    step.
    """
    # By the platform that the program is compiled for, which need not be the one it is compiled on.
    barriers = dict.fromkeys(platforms, jax.lax.optimization_barrier)
    return jax.lax.platform_dependent(tree, **barriers, default=lambda tree: tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def norm_relu(
    x: Float[Array, "batch height width channels"],
    scale: Float[Array, " channels"] | None,
    bias: Float[Array, " channels"] | None,
    mask: Bool[Array, " batch"] | None,
    epsilon: float,
    pool: bool,
    axis_name: str | None = None,
) -> tuple[Float[Array, "batch rows columns channels"], Moments]:
    """`max_pool(relu(batch_norm(x)))` of a batch in training, or without the pool, and the batch's moments.

    With d = sqrt(var + epsilon), n values per channel, and g the gradient at BatchNorm's output (the incoming one, at
    the place of each window's largest value where that is above 0; 0 elsewhere), all sums over the batch:

        bias gradient  = sum(g)
        scale gradient = sum(g * (x - mean)) / d
        x gradient     = scale / d * (g - sum(g) / n - (x - mean) * sum(g * (x - mean)) / (n * d^2))

    So x and the incoming gradient are read twice, once for the two sums and once for the result; below a pool the sums
    need the largest values only. JAX's own gradient takes three sums, and XLA writes g out to memory. No gradient flows
    through the moments.

    Source: Ioffe and Szegedy, 2015 (arXiv:1502.03167), section 3.
    """
    return _norm_relu(x, scale, bias, mask, epsilon, pool, axis_name)[:2]


def _norm_relu(x, scale, bias, mask, epsilon, pool, axis_name):
    y, moments = batch_norm.normalize_batch(x, scale, bias, epsilon=epsilon, mask=mask, axis_name=axis_name)
    y = nn.relu(y)
    if not pool:
        return y, moments, None
    y, place = _pool(y)
    a, b, c, d = _windows(batch_norm.without_filling(x, mask))
    winner = jnp.where(place < 2, jnp.where(place == 0, a, b), jnp.where(place == 2, c, d))
    return y, moments, (winner, jnp.where(y > 0, place, jnp.uint8(4)))  # 4: nowhere, as ReLU stopped all four


def _windows(x):
    """What stands at each of the four places of all windows."""
    check_pool(x.shape)
    rows, columns = x.shape[1] // 2, x.shape[2] // 2
    windows = x[:, : 2 * rows, : 2 * columns].reshape(-1, rows, 2, columns, 2, x.shape[3])
    return [windows[:, :, i, :, j] for i in (0, 1) for j in (0, 1)]


def _pool(x):
    """The largest value of each window, and at which of the four places it stands: the first of equals."""
    a, b, c, d = _windows(x)
    upper, lower = jnp.maximum(a, b), jnp.maximum(c, d)
    # Exactly one place. Comparing with the result instead would lose gradients: compiled code may compute x twice, with
    # other roundings, and then no value equals the largest.
    place = jnp.where(lower > upper, 2 + (d > c).astype(jnp.uint8), (b > a).astype(jnp.uint8))
    return jnp.maximum(upper, lower), place


def _to_places(grad, place, size):
    """The gradient of each window at its place, of four, in images of this height and width; 0 elsewhere."""
    batch, rows, columns, channels = place.shape
    places = jnp.arange(4, dtype=jnp.uint8).reshape(1, 1, 2, 1, 2, 1)
    spread = jnp.where(place[:, :, None, :, None] == places, grad[:, :, None, :, None], 0)
    spread = spread.reshape(batch, 2 * rows, 2 * columns, channels)
    return jnp.pad(spread, ((0, 0), (0, size[0] - 2 * rows), (0, size[1] - 2 * columns), (0, 0)))


def _norm_relu_forward(x, scale, bias, mask, epsilon, pool, axis_name):
    y, moments, pooled = _norm_relu(x, scale, bias, mask, epsilon, pool, axis_name)
    # XLA would rather work out the winners and their places again from x, which is four times as large: on an H100 4 %
    # more bytes a step (CNN6, bfloat16).
    return (y, moments), (x, scale, bias, mask, moments, keep_in_memory(pooled, "cpu", "cuda"))


def _norm_relu_backward(epsilon, pool, axis_name, kept, grads):
    x, scale, bias, mask, (mean, var, count), pooled = kept
    axes, per_channel = tuple(range(x.ndim - 1)), (1,) * (x.ndim - 1) + (-1,)
    grad = grads[0].astype(mean.dtype)
    centred = batch_norm.without_filling(x.astype(mean.dtype), mask) - mean.reshape(per_channel)
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
    sums = jnp.stack([total, projection])
    sums = sums if axis_name is None else jax.lax.psum(sums, axis_name)
    mean_grad, mean_projection = sums / jnp.maximum(count, 1)
    slope = (mean_projection * jnp.square(inverse)).reshape(per_channel)
    through_moments = mean_grad.reshape(per_channel) + centred * slope
    x_gradient = batch_norm.without_filling((grad - through_moments) * factor.reshape(per_channel), mask)
    return (
        x_gradient.astype(x.dtype),
        None if scale is None else projection * inverse,
        None if bias is None else total,
        None,
    )


norm_relu.defvjp(_norm_relu_forward, _norm_relu_backward)


@jax.custom_vjp
def same_convolution(
    x: Float[Array, "batch height width inputs"], kernel: Float[Array, "rows columns inputs outputs"]
) -> Float[Array, "batch height width outputs"]:
    """The cross-correlation of images with `kernel`, of odd height and width, padded with zeros to the same size.

    It equals `jax.lax.conv_general_dilated`, as do its gradients. On a CPU the input's gradient takes another form. JAX
    asks XLA for a convolution whose window is reversed, which XLA computes at a third to a half of the speed of an
    ordinary one, and in bfloat16 does not hand to oneDNN. Here it is an ordinary one, of the incoming gradient g:

        dx[n, i, j, c] = sum over a, b, k of g[n, i + a - p, j + b - q, k] * kernel[2p - a, 2q - b, c, k]

    with p and q the padding of rows and columns. Both forms add the same products.

    Source: torch.nn.Conv2d(padding=kernel_size // 2, bias=False), for the values.
    """
    return _convolve(x, kernel)


def _convolve(x, kernel):
    padding = [(size // 2, size // 2) for size in kernel.shape[:2]]
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _convolution_forward(x, kernel):
    return _convolve(x, kernel), (x, kernel)


def _xla_gradient(x, kernel, grad):
    return jax.vjp(_convolve, x, kernel)[1](grad)


def _cpu_gradient(x, kernel, grad):
    # The barrier keeps the turned kernel in memory: folded into the convolution, it would be a reversed window again.
    turned = jax.lax.optimization_barrier(jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
    (kernel_gradient,) = jax.vjp(lambda kernel: _convolve(x, kernel), kernel)[1](grad)
    return _convolve(grad, turned), kernel_gradient


def _convolution_backward(kept, grad):
    # By the platform that the program is compiled for, which need not be the one it is compiled on.
    return jax.lax.platform_dependent(*kept, grad, cpu=_cpu_gradient, default=_xla_gradient)


same_convolution.defvjp(_convolution_forward, _convolution_backward)


def fast_pool(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch rows columns channels"]:
    """`max_pool`, for evaluation: of equal values, its gradient goes to more than one.

    A CPU takes the largest of four slices faster than it searches windows (in bfloat16, a whole evaluation is 1.8 times
    as fast).
    """
    return jax.lax.platform_dependent(x, cpu=lambda x: _pool(x)[0], default=max_pool)


class NormRelu(BatchNorm):
    """In training, BatchNorm, then ReLU and, with `pool`, a 2x2 max pool, in one function: `norm_relu`."""

    pool: bool = False

    def normalize_batch(self, x, scale, bias, mask):
        """The output of all two or three, and the moments to learn from."""
        return norm_relu(x, scale, bias, mask, self.epsilon, self.pool, self.axis_name)


class FusedCNN(CNN):
    """`CNN` with `same_convolution` and `norm_relu` in training, and with `fast_pool` in evaluation."""

    def block(self, x, number, width, *, last, train, mask):
        """Convolution, BatchNorm, ReLU and, after the last of a stage, the pool."""
        if not train:
            return super().block(x, number, width, last=last, train=train, mask=mask)
        # XLA would compute x once more inside the transposition for the weights' gradient, which is three times as slow
        # as a transposition alone.
        x = keep_in_memory(x, "cpu")
        x = nn.Conv(
            width, (3, 3), padding=1, use_bias=False, dtype=self.dtype, param_dtype=stats_dtype(self.dtype),
            kernel_init=self.kernel_init, conv_general_dilated=_as_flax_calls_it, name=f"conv{number}",
        )(x)  # fmt: skip
        return NormRelu(
            self.norm_rule, self.epsilon, compare=self.norm_compare, axis_name=self.norm_axis_name, pool=last,
            name=f"norm{number}",
        )(x, train=True, mask=mask)  # fmt: skip

    def pool(self, x):
        """What closes a stage in evaluation."""
        return fast_pool(x)


def _as_flax_calls_it(x, kernel, strides, padding, **options):
    del strides, padding, options  # one step, the same size, nothing dilated
    return same_convolution(x, kernel)


def fuse(model: CNN) -> FusedCNN:
    """The same network for runs: the same variables, outputs and gradients, computed faster."""
    fields = [field.name for field in dataclasses.fields(model) if field.name not in ("parent", "name")]
    return FusedCNN(**{name: getattr(model, name) for name in fields})
