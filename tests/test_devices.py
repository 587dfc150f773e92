import jax
import pytest

from cifar_jax import devices


def test_double_precision_is_compiled_without_the_known_options(x64):
    """They make it 18 times as slow."""
    assert devices.compiler_options() == {}


def test_options_that_this_jaxlib_refuses_are_left_out(monkeypatch):
    def refuse(*arguments, **options):
        raise jax.errors.JaxRuntimeError("No such compile option")

    known = devices.compiler_options()
    jax.jit(lambda x: x + 1).lower(1).compile(compiler_options=known)
    devices._known_options.cache_clear()
    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    assert devices.compiler_options() == {}
    devices._known_options.cache_clear()


def test_a_platform_that_is_not_there_is_refused():
    with pytest.raises(devices.InputError, match=r"platform must name devices that JAX finds here \(cpu\)"):
        devices.select_devices("tpu")
