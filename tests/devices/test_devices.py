import jax
import jax.numpy as jnp
import pytest

from cifar_jax.devices import select as devices


def test_double_precision_is_compiled_without_the_accepted_options(x64):
    """They make it 18 times as slow."""
    assert devices.compiler_options(jnp.float64) == {}


def test_options_that_this_jaxlib_refuses_are_left_out(monkeypatch):
    def refuse(*arguments, **options):
        raise jax.errors.JaxRuntimeError("No such compile option")

    known = devices.compiler_options(jnp.float32)
    jax.jit(lambda x: x + 1).lower(1).compile(compiler_options=known)
    devices._accepted_options.cache_clear()
    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    assert devices.compiler_options(jnp.float32) == {}
    devices._accepted_options.cache_clear()


def test_bfloat16_is_handed_to_onednn_only_where_a_program_shows_it(monkeypatch):
    """With one of the two options alone, or where nothing is rewritten, a convolution may be 30 times slower."""
    x, kernel = jnp.ones((8, 16, 16, 64), jnp.bfloat16), jnp.ones((3, 3, 64, 64), jnp.bfloat16)

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    text = jax.jit(convolve).lower(x, kernel).compile(devices.compiler_options(jnp.bfloat16)).as_text()
    assert ("onednn$" in text) == devices.onednn_convolves()
    assert not any("onednn" in option for option in devices.compiler_options(jnp.float32))
    monkeypatch.setattr(devices, "onednn_convolves", lambda: False)
    assert devices.compiler_options(jnp.bfloat16) == devices.compiler_options(jnp.float32)


def test_a_platform_that_is_not_there_is_refused():
    with pytest.raises(devices.InputError, match=r"platform must name devices that JAX finds here \(cpu\)"):
        devices.select_devices("tpu")
