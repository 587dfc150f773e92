import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax.nn.convolution import Conv, same_convolution


def gradients(convolve, x, kernel, grad):
    return jax.jit(lambda *args: jax.vjp(convolve, *args)[1](grad))(x, kernel)


def stock(x, kernel):
    padding = [(size // 2, size // 2) for size in kernel.shape[:2]]
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize("size", [(3, 3), (1, 1), (5, 3)])
def test_gradients_are_those_of_jaxs_convolution(rng, x64, size):
    shapes = (4, 6, 5, 3), (*size, 3, 7), (4, 6, 5, 7)
    x, kernel, grad = (jnp.asarray(rng.normal(size=shape)) for shape in shapes)
    np.testing.assert_allclose(same_convolution(x, kernel), stock(x, kernel), rtol=1e-12, atol=1e-12)
    found, expected = (gradients(convolve, x, kernel, grad) for convolve in (same_convolution, stock))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-12)


def test_the_module_is_flaxs_own(rng):
    x = jnp.asarray(rng.normal(size=(2, 8, 8, 3)), jnp.float32)
    init = nn.initializers.lecun_normal()
    ours = Conv(5, init, name="conv1")
    theirs = nn.Conv(5, (3, 3), padding=1, use_bias=False, kernel_init=init, name="conv1")
    variables = ours.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, variables, theirs.init(jax.random.key(0), x))
    np.testing.assert_array_equal(ours.apply(variables, x), theirs.apply(variables, x))


@pytest.mark.parametrize(("platform", "turned"), [("cpu", True), ("cuda", False), ("tpu", False)])
def test_only_a_cpu_gets_the_input_gradient_as_an_ordinary_convolution(platform, turned):
    """By the platform that a program is for, not the one it is compiled on."""
    x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))
    jitted = jax.jit(lambda x, kernel: jax.grad(lambda *args: same_convolution(*args).sum(), (0, 1))(x, kernel))
    text = jitted.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
    assert ("optimization_barrier" in text) == turned
