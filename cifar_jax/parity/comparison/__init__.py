"""Compares any PyTorch module with any Flax module, and names the cause of each difference.

    from cifar_jax.parity.comparison import compare
    result = compare(torch_model, flax_module, "8,3,32,32")
    print(result); result.write_html("comparison.html"); result.assert_equal()

Both get the same provoking weights in float64. The port is run once and all its values are kept; PyTorch's copy is run
again and again, changed at the first difference in one way after another, until it does what the port does.
"""

from typing import Any

__all__ = ["Result", "WeightMap", "compare", "load_mapping"]

_HOMES = {"compare": "engine", "WeightMap": "mapping", "load_mapping": "mapping", "Result": "result"}


def __getattr__(name: str) -> Any:
    # The help of the command must not wait for torch, nor need it.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
