"""A test of a port in five lines.

from cifar_jax.parity.comparison.testing import assert_ported

def test_port():
    assert_ported(theirs.Net(), ours.Net(), "4,3,32,32")
"""

from typing import Any

from cifar_jax.parity.comparison.result import Result


def assert_ported(torch_model: Any, flax_module: Any, batches: Any, **options: Any) -> Result:
    """Fails with the causes and the lines to change unless a Flax module does what a PyTorch module does.

    Args:
      torch_model, flax_module, batches, options: as `compare` takes them.

    Returns:
      The result, for further claims, such as a largest error.
    """
    from cifar_jax.parity.comparison import compare

    result = compare(torch_model, flax_module, batches, **options)
    result.assert_equal()
    return result
