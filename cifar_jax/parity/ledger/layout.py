"""NHWC arrays here, NCHW tensors in torch."""

import numpy as np
import torch


def nchw(images) -> torch.Tensor:
    """A tensor `[batch, channels, height, width]` of an array `[batch, height, width, channels]`, same type."""
    return torch.tensor(np.ascontiguousarray(np.asarray(images).transpose(0, 3, 1, 2)))


def nhwc(tensor: torch.Tensor) -> np.ndarray:
    """An array `[batch, height, width, channels]` of a tensor `[batch, channels, height, width]`, same type."""
    return tensor.detach().numpy().transpose(0, 2, 3, 1)
