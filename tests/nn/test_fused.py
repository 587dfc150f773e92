"""The gradients made by hand, against PyTorch's and against those that JAX makes of the plain network."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax.nn.batch_norm import lecture_rule, normalize_batch, torch_rule
from cifar_jax.nn.fused import fuse, norm_relu, same_convolution
from cifar_jax.nn.layers import max_pool
from cifar_jax.nn.models import NETWORKS, create_model
from cifar_jax.runs.steps import loss_and_grads


def one_by_one(x, scale, bias, mask, epsilon, pool):
    """What `norm_relu` computes, from the plain functions."""
    y, moments = normalize_batch(x, scale, bias, epsilon=epsilon, mask=mask)
    return max_pool(nn.relu(y)) if pool else nn.relu(y), moments


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_norm_relu_follows_torch(torch, x64, rng, size, pool):
    """Output, moments and gradients. 1e-12: rounding of sums of 500 doubles.

    Three levels make ties in most windows, and windows of nothing but zeros after ReLU.
    """
    x = rng.integers(0, 3, (8, *size, 3)).astype(float)
    scale, bias = np.array([1.5, -0.7, 0.3]), np.array([0.1, 0.2, -0.3])
    tx, *affine = (torch.tensor(a).requires_grad_() for a in (x.transpose(0, 3, 1, 2), scale, bias))
    ty = torch.relu(torch.nn.functional.batch_norm(tx, None, None, *affine, training=True))
    ty = torch.nn.functional.max_pool2d(ty, 2) if pool else ty
    weights = rng.normal(size=ty.shape)
    (ty * torch.tensor(weights)).sum().backward()

    def loss(x, scale, bias):
        y, moments = norm_relu(x, scale, bias, None, 1e-5, pool)
        return jnp.sum(y * weights.transpose(0, 2, 3, 1)), (y, moments)

    arguments = [jnp.asarray(a) for a in (x, scale, bias)]
    grads, (y, moments) = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*arguments)
    close = {"rtol": 0, "atol": 1e-12}
    np.testing.assert_allclose(y, ty.detach().numpy().transpose(0, 2, 3, 1), **close)
    np.testing.assert_allclose(grads[0], tx.grad.numpy().transpose(0, 2, 3, 1), **close)
    for ours, theirs in zip(grads[1:], affine, strict=True):
        np.testing.assert_allclose(ours, theirs.grad.numpy(), **close)
    np.testing.assert_allclose(moments[:2], [x.mean((0, 1, 2)), x.var((0, 1, 2))], **close)


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_norm_relu_with_rows_that_fill_up_the_batch(x64, rng, affine, pool):
    """They have no share in the statistics, and no NaN of theirs gets out. 1e-12: rounding of doubles."""
    x, mask = jnp.asarray(rng.normal(1, 2, (6, 4, 4, 3))).at[0].set(jnp.nan), (jnp.arange(6) + 5) % 6 < 4
    scale, bias = (jnp.asarray(rng.normal(size=3)) if affine else None for _ in range(2))
    weights = jnp.asarray(rng.normal(size=(6, 2, 2, 3) if pool else x.shape))

    def gradient(function):
        loss = lambda x, *affine: jnp.sum(function(x, *affine, mask, 1e-5, pool)[0] * weights)  # noqa: E731
        return jax.jit(jax.grad(loss, (0, 1, 2) if affine else 0))(x, scale, bias)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), gradient(norm_relu), gradient(one_by_one)
    )
    x_gradient = jax.tree.leaves(gradient(norm_relu))[0]
    np.testing.assert_array_equal(x_gradient[~mask], 0)
    assert np.abs(x_gradient[mask]).max() > 0.1


def test_the_pool_after_norm_relu_refuses_a_map_of_one_row():
    with pytest.raises(ValueError, match="max_pool takes"):
        norm_relu(jnp.zeros((2, 1, 4, 3)), None, None, None, 1e-5, True)


def convolution_convolution_gradients(convolve, x, kernel, grad):
    return jax.jit(lambda *args: jax.vjp(convolve, *args)[1](grad))(x, kernel)


def convolution_gradients(convolve, x, kernel, grad):
    return jax.jit(lambda *args: jax.vjp(convolve, *args)[1](grad))(x, kernel)


def stock(x, kernel):
    padding = [(size // 2, size // 2) for size in kernel.shape[:2]]
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize("size", [(3, 3), (1, 1), (5, 3)])
def test_convolution_and_its_gradients_are_jaxs(rng, x64, size):
    shapes = (4, 6, 5, 3), (*size, 3, 7), (4, 6, 5, 7)
    x, kernel, grad = (jnp.asarray(rng.normal(size=shape)) for shape in shapes)
    np.testing.assert_allclose(same_convolution(x, kernel), stock(x, kernel), rtol=1e-12, atol=1e-12)
    found, expected = (convolution_gradients(convolve, x, kernel, grad) for convolve in (same_convolution, stock))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("platform", "turned"), [("cpu", True), ("cuda", False), ("tpu", False)])
def test_only_a_cpu_gets_the_input_gradient_as_an_ordinary_convolution(platform, turned):
    """By the platform that a program is for, not the one it is compiled on."""
    x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))
    jitted = jax.jit(lambda x, kernel: jax.grad(lambda *args: same_convolution(*args).sum(), (0, 1))(x, kernel))
    text = jitted.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
    assert ("optimization_barrier" in text) == turned


def network_gradients(model, variables, x, labels, mask=None):
    jitted = jax.jit(lambda p, s: loss_and_grads(p, s, x, labels, mask, model=model))
    return jitted(variables["params"], variables["batch_stats"])


@pytest.mark.parametrize(("name", "masked"), [("cnn6", False), ("cnn6", True), ("cnn10", False)])
def test_the_fused_network_is_the_plain_one(x64, rng, name, masked):
    """Variables to the bit; logits, loss, statistics of two rules and gradients to 1e-12, rounding of double sums."""
    stages = tuple(tuple(w // 16 for w in widths) for widths in NETWORKS[name])
    plain = create_model(
        name, norm_rule=torch_rule(0.3), num_classes=7, stages=stages, epsilon=1e-3, dtype=jnp.dtype("float64"),
        norm_compare=(("lecture", lecture_rule()),),
    )  # fmt: skip
    x, labels = jnp.asarray(rng.normal(size=(6, 32, 32, 3))), jnp.asarray(rng.integers(0, 7, 6))
    mask = jnp.arange(6) < 4 if masked else None
    variables, same = (model.init(jax.random.key(0), x, train=False) for model in (plain, fuse(plain)))
    jax.tree.map(np.testing.assert_array_equal, variables, same)
    expected, found = (network_gradients(model, variables, x, labels, mask) for model in (plain, fuse(plain)))
    rows = slice(None, 4 if masked else 6)
    expected, found = (g._replace(logits=g.logits[rows]) for g in (expected, found))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), found, expected)
    logits, same = (model.apply(variables, x, train=False) for model in (plain, fuse(plain)))
    np.testing.assert_array_equal(logits, same)


def test_on_a_cpu_the_fused_network_searches_no_windows():
    """Neither for a pool (reduce-window) nor for its gradient (select-and-scatter), which the plain network does."""
    plain = create_model("cnn6", norm_rule=torch_rule(), stages=((4, 4), (4, 4), (4, 4)))
    x, labels = jnp.zeros((2, 32, 32, 3)), jnp.zeros(2, jnp.int32)
    variables = plain.init(jax.random.key(0), x, train=False)

    def text(model, train):
        if train:
            return jax.jit(lambda v: network_gradients(model, v, x, labels)).lower(variables).as_text()
        return jax.jit(lambda v: model.apply(v, x, train=False)).lower(variables).as_text()

    assert "select_and_scatter" in text(plain, True)
    assert "reduce_window" in text(plain, False)
    for train in (True, False):
        assert "select_and_scatter" not in text(fuse(plain), train)
        assert "reduce_window" not in text(fuse(plain), train)


def test_no_gradient_is_lost_in_a_compiled_network(rng):
    """Where activations are large, XLA computes the pool's input a second time, with other roundings, for the gradient.

    A gradient that looks for the value that equals the largest then finds none, and is off by more than half.
    """
    x, labels = jnp.asarray(rng.normal(size=(100, 32, 32, 3)), jnp.float32), jnp.asarray(rng.integers(0, 100, 100))
    plain = create_model("cnn6", norm_rule=torch_rule(), stages=((8, 64), (8, 8), (8, 8)))
    variables = plain.init(jax.random.key(0), x, train=False)
    expected, found = (network_gradients(model, variables, x, labels).grads for model in (plain, fuse(plain)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max()), found, expected)


@pytest.mark.parametrize(("platform", "barriers"), [("cpu", True), ("cuda", True), ("tpu", False)])
def test_only_a_tpu_works_out_again_what_a_pool_kept(platform, barriers):
    """By the platform that a program is for, not the one it is compiled on."""
    jitted = jax.jit(jax.grad(lambda x: jnp.sum(norm_relu(x, None, None, None, 1e-5, True)[0])))
    text = jitted.trace(jnp.ones((2, 8, 8, 3))).lower(lowering_platforms=(platform,)).as_text()
    assert ("optimization_barrier" in text) == barriers
