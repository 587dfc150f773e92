"""The least that the network's training and evaluation can take: arithmetic and bytes per image, counted by hand.

Time over the larger of the two floors says how far an arm is from what the device allows.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Work(NamedTuple):
    """Floating-point operations and bytes of device memory, per image."""

    flops: float
    bytes: float


class _Layer(NamedTuple):
    """A convolution: multiply-adds forward, values it puts out, and how many of these a pool after it leaves."""

    multiply_adds: int
    outputs: int
    kept: int


def _layers(stages: Sequence[Sequence[int]], image_size: int) -> list[_Layer]:
    layers, size, channels = [], image_size, 3
    for widths in stages:
        for place, width in enumerate(widths):
            pooled = (size // 2) ** 2 if place == len(widths) - 1 else size**2
            layers.append(_Layer(9 * channels * width * size**2, width * size**2, width * pooled))
            channels = width
        size //= 2
    return layers


def multiply_adds(stages: Sequence[Sequence[int]], image_size: int, classes: int) -> int:
    """Of the convolutions and the linear layer, forward.

    >>> multiply_adds(((64, 64), (128, 128), (256, 256)), 32, 100)
    152790016
    """
    return sum(layer.multiply_adds for layer in _layers(stages, image_size)) + stages[-1][-1] * classes


def parameters(stages: Sequence[Sequence[int]], classes: int) -> int:
    """Of convolutions, BatchNorm's scale and bias, and the linear layer.

    >>> parameters(((64, 64), (128, 128), (256, 256)), 100)
    1172004
    """
    widths = [width for stage in stages for width in stage]
    convolutions = sum(9 * before * width for before, width in zip([3, *widths], widths, strict=False))
    return convolutions + 2 * sum(widths) + (widths[-1] + 1) * classes


def training(
    stages: Sequence[Sequence[int]],
    *,
    image_size: int,
    classes: int,
    batch_size: int,
    value_bytes: int,
    moments: int,
) -> Work:
    """The floors of a step of training, per image.

    Arithmetic: two operations a multiply-add, three times over: forward, the gradient of the input and that of the
    weight; the first convolution's input, the image, needs none. BatchNorm, ReLU and pools are not counted.

    Bytes, if all that works value by value is fused into convolutions. BatchNorm in training forces passes apart,
    because its sums must be complete before it can normalise, forward and backward:
    - a convolution's output is written, and read by the next layer, which normalises and pools as it reads;
    - backward, it is read with the gradient of the next layer's input, once to make that gradient's sums and the
      gradient of the next layer's weight, and once more to make its own gradient;
    - the gradient of the next layer's input, as many values as a pool left, is written and read.
    The image is read twice as uint8. Parameters are float32: each step reads them forward and backward, writes and
    reads their gradient, and reads and writes them and the optimizer's `moments` values each.

    Args:
      stages: widths of the convolutions between pools.
      image_size: height and width.
      classes: number of logits.
      batch_size: images a step; the parameters' bytes are shared among them.
      value_bytes: of an activation, 4 or 2.
      moments: that the optimizer keeps: 2 for Adam, 1 for SGD with momentum.
    """
    layers = _layers(stages, image_size)
    forward = multiply_adds(stages, image_size, classes)
    activations = sum(4 * layer.outputs + 2 * layer.kept for layer in layers) * value_bytes
    each_step = parameters(stages, classes) * 4 * (2 + 2 + 2 + 2 * moments)
    return Work(
        flops=2 * (3 * forward - layers[0].multiply_adds), bytes=activations + 2 * 3 * 32**2 + each_step / batch_size
    )


def evaluation(
    stages: Sequence[Sequence[int]], *, image_size: int, classes: int, batch_size: int, value_bytes: int
) -> Work:
    """The floors of evaluation, per image; arguments as for `training`.

    BatchNorm by running statistics is a constant scale and shift, so that a convolution, it, ReLU and the pool are one
    pass: what the pool leaves is written and read. The image is read once, the parameters once a batch.
    """
    layers = _layers(stages, image_size)
    return Work(
        flops=2 * multiply_adds(stages, image_size, classes),
        bytes=2 * sum(layer.kept for layer in layers) * value_bytes
        + 3 * 32**2
        + parameters(stages, classes) * 4 / batch_size,
    )
