"""Names and layouts: our trees to PyTorch's state_dict and back, in NumPy alone, bit for bit.

| here | in PyTorch |
|---|---|
| params `conv1/kernel` `[height, width, in, out]` | `conv1.weight` `[out, in, height, width]` |
| params `norm1/scale`, `norm1/bias` | `norm1.weight`, `norm1.bias` |
| params `linear/kernel` `[in, out]`, `linear/bias` | `linear.weight` `[out, in]`, `linear.bias` |
| batch_stats `norm1/mean`, `norm1/var` | `norm1.running_mean`, `norm1.running_var` |
| the number of updates | `norm1.num_batches_tracked`, int64 `[]` |

Gradients and an optimizer's moments have the tree of `params`, and go the same way without `batch_stats`.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from cifar_jax.errors import InputError

Tree = Mapping[str, Mapping[str, Any]]

_NAMES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_COUNTER = "num_batches_tracked"
# Axes of one of our arrays in PyTorch's order, by number of axes.
_TO_TORCH = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}
_FROM_TORCH = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}


class Variables(NamedTuple):
    """What a state_dict holds, as our trees of NumPy arrays.

    params: the parameters.
    batch_stats: the running statistics; empty where none were asked for.
    updates: `num_batches_tracked`; 0 where none was asked for.
    """

    params: dict[str, dict[str, np.ndarray]]
    batch_stats: dict[str, dict[str, np.ndarray]]
    updates: int


def to_state_dict(params: Tree, batch_stats: Tree | None = None, *, updates: int = 0) -> dict[str, np.ndarray]:
    """PyTorch's state_dict of these trees, in the order in which torch lists it.

    Args:
      params: parameters, or anything with their tree and shapes.
      batch_stats: running statistics; None leaves them and the counters out.
      updates: batches seen in training so far, for `num_batches_tracked`.
    """
    state_dict = {}
    for key, leaf in _entries(params, batch_stats):
        if leaf is None:
            state_dict[key] = np.asarray(updates, np.int64)
        else:
            array = np.asarray(leaf)
            state_dict[key] = np.ascontiguousarray(array.transpose(_TO_TORCH[array.ndim]))
    return state_dict


def from_state_dict(
    state_dict: Mapping[str, np.ndarray], params: Tree, batch_stats: Tree | None = None, *, source: str = "state_dict"
) -> Variables:
    """Our trees of a state_dict.

    Args:
      state_dict: arrays by PyTorch's names.
      params: the tree to fill: parameters or their shapes and types (`jax.ShapeDtypeStruct`).
      batch_stats: likewise; None where the state_dict has parameters alone, as gradients and moments do.
      source: what to call the state_dict in an error, such as a file's name.

    Raises:
      InputError: keys are missing, unused, of another shape or of another type, or the counters differ; one sentence
        with all of them.
    """
    expected = dict(_entries(params, batch_stats))
    wrong = _differences(state_dict, expected)
    counters = set() if wrong else {int(state_dict[key]) for key, leaf in expected.items() if leaf is None}
    if len(counters) > 1:
        wrong.append(f"{_COUNTER} must be one number, got {' and '.join(map(str, sorted(counters)))}")
    if wrong:
        raise InputError(f"{source} does not fit the network: {'; '.join(wrong)}.")

    def fill(tree):
        return {
            module: {
                name: np.ascontiguousarray(
                    state_dict[f"{module}.{_NAMES[name]}"].transpose(_FROM_TORCH[len(leaf.shape)])
                )
                for name, leaf in leaves.items()
            }
            for module, leaves in tree.items()
        }

    return Variables(fill(params), fill(batch_stats or {}), counters.pop() if counters else 0)


def _differences(state_dict: Mapping[str, np.ndarray], expected: Mapping[str, Any]) -> list[str]:
    wrong = []
    if missing := [key for key in expected if key not in state_dict]:
        wrong.append(f"missing {', '.join(missing)}")
    if unused := [key for key in state_dict if key not in expected]:
        wrong.append(f"unused {', '.join(unused)}")
    for key, leaf in expected.items():
        if key not in state_dict:
            continue
        array = state_dict[key]
        shape = () if leaf is None else tuple(leaf.shape[axis] for axis in _TO_TORCH[len(leaf.shape)])
        dtype = np.dtype(np.int64 if leaf is None else leaf.dtype)
        if array.shape != shape:
            wrong.append(f"{key} must have shape {list(shape)}, got {list(array.shape)}")
        if array.dtype != dtype:
            wrong.append(f"{key} must be {dtype}, got {array.dtype}")
    return wrong


def _entries(params: Tree, batch_stats: Tree | None) -> Iterator[tuple[str, Any]]:
    """PyTorch's keys in its order, each with our leaf, or with None for a counter."""
    stats = batch_stats or {}
    for module in sorted({**params, **stats}, key=_place):
        leaves = {**params.get(module, {}), **stats.get(module, {})}
        for name in _NAMES:
            if name in leaves:
                yield f"{module}.{_NAMES[name]}", leaves[name]
        if module in stats:
            yield f"{module}.{_COUNTER}", None


def _place(module: str) -> tuple[int, str]:
    """Where a module stands in the network: conv1, norm1, conv2, ..., linear."""
    number = re.search(r"\d+$", module)
    return (int(number[0]) if number else sys.maxsize, module)
