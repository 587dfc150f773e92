"""Choosing where to run, before JAX has started a backend."""

import functools
import warnings
from collections.abc import Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from cifar_jax.errors import InputError


def select_devices(platform: str) -> list[jax.Device]:
    """The devices of `platform`, "cpu", "gpu" or "tpu"; "auto" takes the fastest platform that JAX finds.

    Must run before anything is put on a device.

    Raises:
      InputError: the machine has no such device, or JAX was installed without support for it.
    """
    if platform == "cpu":
        jax.config.update("jax_platforms", "cpu")
    try:
        return jax.devices(None if platform == "auto" else platform)
    except RuntimeError as error:
        found = sorted({device.platform for device in jax.devices()})
        extra = {"gpu": "cuda"}.get(platform, platform)
        raise InputError(
            f"platform must name devices that JAX finds here ({', '.join(found)}) or be auto, got {platform}; "
            f"pip install '.[{extra}]' adds support for it."
        ) from error


def keep_compilations(folder: Path) -> None:
    """Keeps compiled programs in `folder`, so that a later start need not compile them again.

    A folder that the user gave JAX (`JAX_COMPILATION_CACHE_DIR`) stays, and so does `JAX_ENABLE_COMPILATION_CACHE=0`.
    """
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
    # JAX would leave out what compiles within a second; a run has a dozen such programs.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def describe(devices: list[jax.Device]) -> str:
    """Such as `4 gpu (NVIDIA H200)`."""
    return f"{len(devices)} {devices[0].platform} ({devices[0].device_kind})"


def fits(arrays: Iterable[np.ndarray]) -> bool:
    """Whether a device can hold these and still train: they take a quarter of its memory at most, where that is known.

    The CPU always can: it is where they are. Of many processes each asks a device of its own.
    """
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return limit is None or 4 * sum(array.nbytes for array in arrays) <= limit


def compiler_options(dtype: DTypeLike) -> dict[str, str | bool]:
    """What to tell XLA when it compiles a step that computes in `dtype`; nothing, except on the CPU.

    float32: XLA hands reductions and matrix products to its library of micro-kernels. A training step of CNN6 is 1.3 to
    1.7 times as fast (jax 0.12 and 0.10), and its gradients no less exact. In float64 the same makes it 18 times as
    slow, so there it is left out.

    bfloat16: also, XLA hands convolutions to oneDNN, which uses the processor's bfloat16 instructions (AVX512_BF16,
    AMX), where this jaxlib carries it and the processor has them.
    """
    if jax.default_backend() != "cpu" or jax.config.jax_enable_x64:
        return {}
    options = _accepted_options()
    return options | _ONEDNN if options and dtype == jnp.bfloat16 and onednn_convolves() else options


def options_for_one_run() -> dict[str, int]:
    """What to tell XLA about a program that runs only once: on the CPU, to spend less time on making it fast.

    Initial weights, drawn by some hundred operations, then compile in 0.5 s rather than 3, and run in 15 ms.
    """
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}


# Both: with the first alone, a bfloat16 convolution takes 30 times as long as without.
_ONEDNN = {"xla_cpu_use_onednn": True, "xla_cpu_experimental_onednn_custom_call": True}


@functools.cache
def onednn_convolves() -> bool:
    """Whether XLA hands a bfloat16 convolution to oneDNN when it is told to: seen in a small program that it compiles.

    jax 0.10 takes the options and does nothing; a processor without bfloat16 instructions does nothing either.
    """

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    shapes = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((8, 16, 16, 32), (3, 3, 32, 32))]
    # XLA cannot serialise a program that calls oneDNN, so it is compiled at each start; JAX would warn of that.
    warnings.filterwarnings("ignore", "Error writing persistent compilation cache entry .*std::bad_alloc")
    try:
        compiled = jax.jit(convolve).lower(*shapes).compile(compiler_options=_ONEDNN)
    except jax.errors.JaxRuntimeError:
        return False
    return "onednn$" in compiled.as_text()  # the name of what is called; without $, this function's own name


@functools.cache
def _accepted_options() -> dict[str, str | bool]:
    """The options for float32 if this jaxlib knows them: it refuses others, so they are tried on a small program."""
    options = {
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE,LIBRARY_FUSION_TYPE_DOT",
        # Before jax 0.12, this pass takes away optimization barriers so early that they keep nothing apart.
        "xla_disable_hlo_passes": "cse_barrier_expander",
    }
    try:
        jax.jit(lambda: 0).lower().compile(compiler_options=options)
    except jax.errors.JaxRuntimeError:
        return {}
    return options
