"""Resizing as two matrix products, in all conventions that both frameworks have."""

import numpy as np
import torch


def resize(x: torch.Tensor, size, *, kernel: str, corners: bool, antialias: bool, clamp: bool) -> torch.Tensor:
    """Resizes the axes after the second one.

    Args:
      x: `[batch, channels, ...]`.
      size: the new sizes.
      kernel: "nearest", "nearest_floor", "linear", "cubic_half" (a = -0.5) or "cubic_torch" (a = -0.75).
      corners: whether the middles of the corner pixels stay where they are.
      antialias: whether the kernel widens where the image shrinks.
      clamp: pixels beyond the border repeat the last one, as in torch; else their weight goes to the others, as in JAX.
    """
    for axis, new in enumerate(size, 2):
        matrix = torch.from_numpy(weights(x.shape[axis], new, kernel, corners, antialias, clamp)).to(x.dtype)
        x = torch.movedim(torch.movedim(x, axis, -1) @ matrix.T, -1, axis)
    return x


def weights(old: int, new: int, kernel: str, corners: bool, antialias: bool, clamp: bool) -> np.ndarray:
    """The matrix `[new, old]` that resizes one axis."""
    scale = old / new
    if corners:
        scale = (old - 1) / max(new - 1, 1)
        middles = np.arange(new) * scale
    else:
        middles = (np.arange(new) + 0.5) * scale - 0.5
    matrix = np.zeros((new, old))
    if kernel.startswith("nearest"):
        sources = np.floor(np.arange(new) * scale + (1e-9 if kernel == "nearest_floor" else 0))
        if kernel == "nearest":
            sources = np.floor(middles + 0.5) if corners else np.floor((np.arange(new) + 0.5) * scale)
        matrix[np.arange(new), np.clip(sources, 0, old - 1).astype(int)] = 1
        return matrix
    width = max(scale, 1.0) if antialias else 1.0
    support = (1 if kernel == "linear" else 2) * width
    for row, middle in enumerate(middles):
        for source in range(int(np.floor(middle - support)), int(np.ceil(middle + support)) + 1):
            weight = _kernel(kernel, abs(source - middle) / width)
            if clamp:
                matrix[row, min(max(source, 0), old - 1)] += weight
            elif 0 <= source < old:
                matrix[row, source] += weight
    return matrix / matrix.sum(1, keepdims=True)


def _kernel(kernel: str, distance: float) -> float:
    if kernel == "linear":
        return max(1 - distance, 0.0)
    a = -0.5 if kernel == "cubic_half" else -0.75
    if distance <= 1:
        return (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    if distance < 2:
        return a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a
    return 0.0
