"""Strictness for all tests: shapes are checked at run time, and ranks are never promoted."""

import os
from pathlib import Path

# Tests run side by side and compare exact numbers, all of them on the CPU.
os.environ["JAX_PLATFORMS"] = "cpu"
# Tests compile the same few programs again and again, in this process, its neighbours and those that they start.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).parent.parent / ".pytest_cache" / "xla")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jaxtyping

jaxtyping.install_import_hook("cifar_jax", "beartype.beartype")

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent

jax.config.update("jax_numpy_rank_promotion", "raise")
REAL_DATA = ROOT.parent / "shared" / "tfds"


@pytest.fixture(scope="session")
def torch():
    """PyTorch, the oracle. Without it a test is skipped by name, or fails where CIFAR_JAX_REQUIRE_TORCH is set."""
    try:
        import torch
    except ImportError:
        if os.environ.get("CIFAR_JAX_REQUIRE_TORCH"):
            pytest.fail("PyTorch is not installed")
        pytest.skip("PyTorch is not installed: pip install '.[torch]'")
    torch.set_num_threads(1)
    return torch


@pytest.fixture
def x64():
    """Double precision for one test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture
def rng():
    return np.random.default_rng(0)
