"""How one tensor of PyTorch lies in memory as one of Flax's: `[out, in, height, width]` as `[height, width, in, out]`.

A layout is an order of the same elements. What each framework calls a kind of layer decides which orders are possible;
of several, the first is the usual one.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]


class Layout(NamedTuple):
    """An order of elements.

    name: in words.
    to_torch: a Flax array to PyTorch's shape.
    usual: whether a port that was written without a thought about orders has it.
    """

    name: str
    to_torch: Callable[[np.ndarray], np.ndarray]
    usual: bool = True

    def to_flax(self, array: np.ndarray, shape: Shape) -> np.ndarray:
        """The inverse: a PyTorch array to the Flax array of this shape."""
        order = self.to_torch(np.arange(math.prod(shape)).reshape(shape)).reshape(-1)
        flat = np.empty(order.size, array.dtype)
        flat[order] = np.asarray(array).reshape(-1)
        return flat.reshape(shape)


def layouts(kind: str, torch_shape: Shape, flax_shape: Shape, features: Sequence[Shape] = ()) -> list[Layout]:
    """All layouts that a tensor may have, the likeliest first; none where its sizes do not fit.

    Args:
      kind: "conv", "conv_transpose", "linear", "embedding", or "plain" for anything else.
      torch_shape, flax_shape: shapes of the two arrays.
      features: shapes `[channels, height, width]` of images that were flattened before a linear layer.
    """
    if math.prod(torch_shape) != math.prod(flax_shape):
        return []
    makers = {
        "conv": _conv,
        "conv_transpose": _conv_transpose,
        "linear": _linear,
        "embedding": _embedding,
    }
    found = makers.get(kind, _plain)(tuple(torch_shape), tuple(flax_shape), [tuple(each) for each in features])
    unique = {each.name: each for each in reversed(found)}
    return [each for each in found if unique.get(each.name) is each]


def _conv(torch_shape: Shape, flax_shape: Shape, features) -> list[Layout]:
    out, into, *window = torch_shape
    spatial = len(window)
    found = []
    if flax_shape == (*window, into, out):
        found.append(Layout("[..., in, out] of a convolution", lambda a: np.moveaxis(a, (-1, -2), (0, 1))))
        flipped = tuple(range(spatial))
        if max(window) > 1:
            found.append(
                Layout(
                    "[..., in, out] of a convolution, window flipped",
                    lambda a: np.moveaxis(np.flip(a, flipped), (-1, -2), (0, 1)),
                    usual=False,
                )
            )
    if spatial == 2 and flax_shape == (window[1], window[0], into, out) and max(window) > 1:
        found.append(
            Layout("[width, height, in, out] of a convolution", lambda a: a.transpose(3, 2, 1, 0), usual=False)
        )
    if flax_shape == (*window, out, into):
        found.append(Layout("[..., out, in] of a convolution", lambda a: np.moveaxis(a, (-2, -1), (0, 1)), usual=False))
    if flax_shape == torch_shape:
        found.append(Layout("as in PyTorch", lambda a: a, usual=not found))
    if len(flax_shape) == 2 and flax_shape[1] == out:
        # A Dense layer over patches: rows in the order height, width, channels or channels, height, width.
        found.append(
            Layout(
                "rows of patches [height, width, in]",
                lambda a: np.moveaxis(a.reshape(*window, into, out), (-1, -2), (0, 1)),
            )
        )
        if max(window) > 1:
            found.append(Layout("rows of patches [in, height, width]", lambda a: a.T.reshape(torch_shape), usual=False))
    if into == 1 and flax_shape == (*window, out):
        found.append(Layout("[..., channels] of a depthwise convolution", lambda a: np.moveaxis(a, -1, 0)[:, None]))
    return found


def _conv_transpose(torch_shape: Shape, flax_shape: Shape, features) -> list[Layout]:
    into, out, *window = torch_shape
    axes = tuple(range(len(window)))
    found = []
    if flax_shape == (*window, into, out):
        found += [
            Layout(
                "[..., in, out] of a transposed convolution, window flipped",
                lambda a: np.moveaxis(np.flip(a, axes), (-2, -1), (0, 1)),
            ),
            Layout(
                "[..., in, out] of a transposed convolution, not flipped",
                lambda a: np.moveaxis(a, (-2, -1), (0, 1)),
                usual=False,
            ),
        ]
    if flax_shape == (*window, out, into):
        found += [
            Layout("[..., out, in] of a transposed convolution", lambda a: np.moveaxis(a, (-1, -2), (0, 1))),
            Layout(
                "[..., out, in] of a transposed convolution, window flipped",
                lambda a: np.moveaxis(np.flip(a, axes), (-1, -2), (0, 1)),
                usual=False,
            ),
        ]
    if flax_shape == torch_shape:
        found.append(Layout("as in PyTorch", lambda a: a, usual=not found))
    return found


def _linear(torch_shape: Shape, flax_shape: Shape, features) -> list[Layout]:
    out, into = torch_shape[0], math.prod(torch_shape[1:])
    found = []
    if any(math.prod(flax_shape[:cut]) == into for cut in range(len(flax_shape) + 1)):
        found.append(Layout("[in, out]", lambda a: a.reshape(into, out).T.reshape(torch_shape)))
        for channels, *rest in features:
            if channels * math.prod(rest) == into and channels > 1 and math.prod(rest) > 1:
                found.append(_flattened(channels, rest, into, out, torch_shape))
    if any(math.prod(flax_shape[:cut]) == out for cut in range(len(flax_shape) + 1)):
        found.append(Layout("[out, in], as in PyTorch", lambda a: a.reshape(torch_shape), usual=not found))
    return found


def _flattened(channels: int, rest: Sequence[int], into: int, out: int, torch_shape: Shape) -> Layout:
    def to_torch(a):
        return np.moveaxis(a.reshape(*rest, channels, out), -2, 0).reshape(into, out).T.reshape(torch_shape)

    return Layout(f"[in, out], rows in the order {'x'.join(map(str, rest))} then {channels} channels", to_torch)


def _embedding(torch_shape: Shape, flax_shape: Shape, features) -> list[Layout]:
    found = []
    if flax_shape == torch_shape:
        found.append(Layout("as in PyTorch", lambda a: a))
    if flax_shape == torch_shape[::-1]:
        found.append(Layout("[width, entries]", lambda a: a.T, usual=not found))
    return found


def _plain(torch_shape: Shape, flax_shape: Shape, features) -> list[Layout]:
    squeezed = tuple(n for n in torch_shape if n != 1), tuple(n for n in flax_shape if n != 1)
    found = []
    if squeezed[0] == squeezed[1]:
        found.append(Layout("as in PyTorch", lambda a: a.reshape(torch_shape)))
    # A table of images or of windows, channels last.
    core = [axis for axis, n in enumerate(flax_shape) if n != 1]
    if 2 <= len(core) <= 4:
        for order in itertools.permutations(range(len(core))):
            if order != tuple(range(len(core))) and tuple(squeezed[1][i] for i in order) == squeezed[0]:
                found.append(_reordered(order, squeezed[1], torch_shape, usual=not found))
    if not found and len(torch_shape) <= 1:
        found.append(Layout("flattened", lambda a: a.reshape(torch_shape)))
    if not found and squeezed[0] and math.prod(flax_shape):
        found.append(Layout("the same elements in the same order", lambda a: a.reshape(torch_shape), usual=False))
    return found


def _reordered(order: Sequence[int], shape: Shape, torch_shape: Shape, *, usual: bool) -> Layout:
    words = ", ".join(str(i) for i in order)
    return Layout(f"axes ({words})", lambda a: a.reshape(shape).transpose(order).reshape(torch_shape), usual)


def packed_rows(groups: int, order: Sequence[int], rows: int) -> Callable[[np.ndarray], np.ndarray]:
    """Takes blocks of rows in another order: gates of an LSTM, or query, key and value of attention."""

    def reorder(array):
        blocks = array.reshape(groups, rows // groups, *array.shape[1:])
        return blocks[list(order)].reshape(array.shape)

    return reorder


def interleaved_rows(groups: int, heads: int, rows: int) -> Callable[[np.ndarray], np.ndarray]:
    """Rows that lie `[heads, groups, width]` as `[groups, heads, width]`: packed attention, head by head."""

    def reorder(array):
        blocks = array.reshape(heads, groups, rows // (groups * heads), *array.shape[1:])
        return np.swapaxes(blocks, 0, 1).reshape(array.shape)

    return reorder


def interleaved_columns(groups: int, heads: int, rows: int) -> Callable[[np.ndarray], np.ndarray]:
    """Rows that lie `[heads, width, groups]` as `[groups, heads, width]`."""

    def reorder(array):
        blocks = array.reshape(heads, rows // (groups * heads), groups, *array.shape[1:])
        return np.moveaxis(blocks, 2, 0).reshape(array.shape)

    return reorder
