"""Weights, statistics and inputs at which faults show.

At initial weights many faults are silent: a bias of zero, a branch behind a scale of zero, two forms of GELU near 0, a
variance of 1 beside which an epsilon vanishes. So both sides get weights of many sizes, and inputs of several scales.
"""

from collections.abc import Mapping

import jax
import numpy as np

from cifar_jax.errors import InputError


def provoking_weights(
    shapes: Mapping[str, jax.ShapeDtypeStruct], seed: int, *, positive: bool
) -> dict[str, np.ndarray]:
    """Arrays of these shapes, in double precision.

    Kernels are normal with the variance 2 / fan_in, each output channel by a factor of its own between 0.3 and 3;
    arrays of one axis are between 0.3 and 3 with either sign; between 0.3 and 1.5 where they may be variances.

    Args:
      shapes: shapes and types by path; integers and keys are kept at zero.
      seed: of the random numbers.
      positive: whether arrays of one axis must be positive, as running variances.
    """
    rng = np.random.default_rng(seed)
    result = {}
    for path, each in shapes.items():
        shape = tuple(each.shape)
        if not jax.numpy.issubdtype(each.dtype, jax.numpy.floating):
            result[path] = None
            continue
        if len([n for n in shape if n > 1]) < 2 or positive:
            size = np.exp(rng.uniform(np.log(0.3), np.log(1.5 if positive else 3.0), shape))
            result[path] = size if positive else size * rng.choice([-1.0, 1.0], shape)
        else:
            fan_in = max(int(np.prod(shape[:-1])), 1)
            factors = np.exp(rng.uniform(np.log(0.3), np.log(3.0), shape[-1:]))
            factors /= np.sqrt(np.mean(factors**2))
            result[path] = rng.normal(size=shape) * np.sqrt(2 / fan_in) * factors
    return result


def provoking_inputs(specification: str, seed: int, integers_below: int) -> list[np.ndarray]:
    """Inputs from their shapes: "8,3,32,32", or several as "8,16:int;8,3,32,32".

    Images are normal, and each example has a scale of its own between 0.3 and 3.

    Raises:
      InputError: the text names no shapes.
    """
    rng = np.random.default_rng(seed)
    arrays = []
    for part in specification.split(";"):
        dims, _, kind = part.partition(":")
        try:
            shape = tuple(int(n) for n in dims.split(","))
        except ValueError:
            shape = ()
        if not shape or min(shape) < 1 or kind not in ("", "float", "int"):
            raise InputError(
                f"--input must be shapes in PyTorch's order, such as 8,3,32,32 or 8,16:int;8,10, got {specification!r}."
            )
        if kind == "int":
            arrays.append(rng.integers(0, integers_below, shape))
        else:
            scales = np.exp(rng.uniform(np.log(0.3), np.log(3.0), (shape[0], *(1,) * (len(shape) - 1))))
            arrays.append(rng.normal(size=shape) * scales)
    return arrays


def largest_token(model) -> int:
    """How many entries the smallest table of a model's embeddings has; 2 where it has none."""
    import torch

    sizes = [each.num_embeddings for each in model.modules() if isinstance(each, torch.nn.Embedding)]
    return min(sizes, default=2)
