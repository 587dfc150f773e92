"""Image transforms on the device, inside the compiled step: uint8 pixels in, normalised floats out."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Key, UInt8

AUGMENTS = ("flip", "flip_first_half", "none")

# Pillow's fixed point: weights are scaled by 2^22, which leaves 8 bits for the pixel and 2 for overshoot.
_PRECISION_BITS = 32 - 8 - 2


class Transform(NamedTuple):
    """What happens to a batch of images before the network sees it.

    image_size: height and width after a bicubic resize.
    augment: in training only. "flip" mirrors each image with probability 0.5; "flip_first_half" mirrors the first half
      of each batch, as the lecture's CIFAR-10 program does; "none" leaves them.
    normalize: True takes pixels to [-1, 1] (mean 0.5, deviation 0.5), False to [0, 1] (the CIFAR-10 program).
    """

    image_size: int = 32
    augment: str = "flip"
    normalize: bool = True


@functools.cache
def bicubic_taps(in_size: int, out_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Which input pixels each output pixel reads, and their fixed-point weights, along one axis.

    Pillow's convolution kernel (a = -0.5), widened when shrinking so that every input pixel counts.

    Returns:
      index int32 `[out_size, taps]` and weight int32 `[out_size, taps]`, weights in units of 2^-22, 0 where unused.
    """
    ratio = in_size / out_size
    stretch = max(ratio, 1.0)
    support = 2.0 * stretch
    taps = math.ceil(support) * 2 + 1
    index = np.zeros((out_size, taps), np.int32)
    weight = np.zeros((out_size, taps), np.int32)
    for out in range(out_size):
        center = (out + 0.5) * ratio
        low = max(int(center - support + 0.5), 0)
        high = min(int(center + support + 0.5), in_size)
        reads = np.arange(low, high)
        kernel = _cubic((reads - center + 0.5) / stretch)
        scaled = kernel / kernel.sum() * (1 << _PRECISION_BITS)
        index[out, : len(reads)] = reads
        weight[out, : len(reads)] = np.trunc(scaled + np.copysign(0.5, scaled))
    used = (weight != 0).any(axis=0)
    return index[:, used], weight[:, used]


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel with a = -0.5."""
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _resize_axis(images: UInt8[Array, "batch _ _ 3"], axis: int, out_size: int) -> UInt8[Array, "batch _ _ 3"]:
    index, weight = bicubic_taps(images.shape[axis], out_size)
    shape = tuple(out_size if a == axis else 1 for a in range(images.ndim))
    total = jnp.full((), 1 << (_PRECISION_BITS - 1), jnp.int32)
    for tap in range(index.shape[1]):
        pixels = jnp.take(images, index[:, tap], axis=axis, mode="clip").astype(jnp.int32)
        total = total + pixels * weight[:, tap].reshape(shape)
    return jnp.clip(total >> _PRECISION_BITS, 0, 255).astype(jnp.uint8)


def resize(images: UInt8[Array, "batch height width 3"], size: int) -> UInt8[Array, "batch {size} {size} 3"]:
    """Bicubic resize to `size` x `size`, equal to Pillow's on every pixel.

    Pillow rounds and clips to uint8 after each of its two passes and works in fixed point; `jax.image.resize` does
    neither and parts from it by up to 45 levels. The width comes first, unless it grows and the height shrinks. (So
    does Pillow 13; in Pillow 11 it always comes first, which makes a difference for such pictures alone.)

    Source: Pillow 13, Image.resize with Resampling.BICUBIC, which torchvision's Resize calls for PIL images.
    """
    _, height, width, _ = images.shape
    for axis in (1, 2) if height > size > width else (2, 1):
        if images.shape[axis] != size:
            images = _resize_axis(images, axis, size)
    return images


def flip(
    images: UInt8[Array, "batch height width 3"], chosen: Bool[Array, " batch"]
) -> UInt8[Array, "batch height width 3"]:
    """Mirrors the chosen images left to right."""
    return jnp.where(chosen.reshape(-1, 1, 1, 1), images[:, :, ::-1], images)


def to_float(
    images: UInt8[Array, "batch height width 3"], *, normalize: bool, dtype: DTypeLike = jnp.float32
) -> Float[Array, "batch height width 3"]:
    """Pixels as floats: `pixel / 255`, and with `normalize` then `(x - 0.5) / 0.5`; PyTorch's values to the bit.

    Written as a division, XLA multiplies by the reciprocal of 255, which rounds every other pixel differently. Here

        pixel / 255 = pixel * 257 / 65536 + pixel / 255 / 65536    (257 * 255 = 65536 - 1)

    where the first product is exact and the second so small that its rounding does not count. The sum is the quotient
    rounded once, for each of the 256 pixels, in float32 and float64, whether a compiler fuses a product with the sum or
    not. (A table of 256 floats gives the same, by a gather for each pixel, at which a TPU spends thirty steps' time.)

    Source: torchvision's ToTensor, then Normalize(0.5, 0.5).
    """
    x = images.astype(jnp.promote_types(dtype, jnp.float32))
    x = x * (257 / 65536) + x * (1 / 255 / 65536)
    return ((x - 0.5) * 2 if normalize else x).astype(dtype)


def transform_train(
    images: UInt8[Array, "batch 32 32 3"],
    key: Key[Array, ""],
    transform: Transform,
    *,
    mask: Bool[Array, " batch"] | None = None,
    flips: Bool[Array, " batch"] | None = None,
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "batch size size 3"]:
    """A training batch: resized, augmented, scaled.

    `mask` is False for rows that only fill up the batch. `flips` are the images that "flip" mirrors, where they were
    drawn before; None draws them from `key`.
    """
    images = resize(images, transform.image_size)
    rows = images.shape[0]
    if transform.augment == "flip":
        images = flip(images, jax.random.bernoulli(key, 0.5, (rows,)) if flips is None else flips)
    elif transform.augment == "flip_first_half":
        count = rows if mask is None else jnp.sum(mask)
        images = flip(images, jnp.arange(rows) < count // 2)
    return to_float(images, normalize=transform.normalize, dtype=dtype)


def transform_eval(
    images: UInt8[Array, "batch 32 32 3"], transform: Transform, *, dtype: DTypeLike = jnp.float32
) -> Float[Array, "batch size size 3"]:
    """A test batch: resized and scaled, never augmented."""
    return to_float(resize(images, transform.image_size), normalize=transform.normalize, dtype=dtype)
