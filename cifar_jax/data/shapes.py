"""The embedded data set: coloured shapes, drawn from a seed, so that a first run needs no network.

Twenty shapes are the superclasses; each comes in five patterns, which makes a hundred classes. Position, size, tilt and
colours are random, so that no single pixel says much, and every class looks the same in a mirror.
"""

import numpy as np

from cifar_jax.data.dataset import Dataset, Split

SIZE = 32


def _bar(u, v, width, height):
    return np.maximum(np.abs(u) - width, np.abs(v) - height)


def _plus(u, v):
    return np.minimum(_bar(u, v, 0.3, 1.0), _bar(u, v, 1.0, 0.3))


def _disc(u, v, radius=1.0):
    return np.hypot(u, v) - radius


def _polygon(u, v, corners):
    """A regular polygon, one corner up."""
    angles = np.pi / 2 + 2 * np.pi * (np.arange(corners) + 0.5) / corners
    sides = [u * np.float32(np.cos(a)) - v * np.float32(np.sin(a)) for a in angles]
    return np.maximum.reduce(sides) - np.float32(np.cos(np.pi / corners))


def _star(u, v):
    turn = 5 * np.arctan2(u, -v) / (2 * np.pi)
    return np.hypot(u, v) - (1.0 - 1.2 * np.abs(turn - np.rint(turn)))


def _heart(u, v):
    lobes = np.hypot(np.abs(u) - np.float32(0.45), v + np.float32(0.3)) - np.float32(0.52)
    point = np.maximum((np.abs(u) + v) * np.float32(0.7071) - np.float32(0.62), -v - np.float32(0.3))
    return np.minimum(lobes, point)


# Signed distances, roughly: negative inside. v points down; shapes fit into the unit disc or the unit square.
SHAPES = {
    "disc": lambda u, v: _disc(u, v, 0.9),
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.72) - 0.26,
    "square": lambda u, v: _bar(u, v, 0.8, 0.8),
    "frame": lambda u, v: np.abs(np.maximum(np.abs(u), np.abs(v)) - 0.68) - 0.24,
    "triangle": lambda u, v: _polygon(u, v - 0.2, 3),
    "diamond": lambda u, v: (np.abs(u) + np.abs(v) - 1.0) * np.float32(0.7071),
    "pentagon": lambda u, v: _polygon(u, v, 5),
    "star": _star,
    "flower": lambda u, v: np.hypot(u, v) - 0.72 - 0.28 * np.cos(6 * np.arctan2(u, v)),
    "plus": _plus,
    "saltire": lambda u, v: _plus((u + v) * 0.7071, (u - v) * 0.7071),
    "crescent": lambda u, v: np.maximum(_disc(u, v), -_disc(u, v + 0.5, 0.75)),
    "heart": _heart,
    "dome": lambda u, v: np.maximum(_disc(u, v - 0.45), v - 0.45),
    "ellipse": lambda u, v: (np.hypot(u, v * 2) - 1) * 0.6,
    "pillar": lambda u, v: _bar(u, v, 0.36, 1.0),
    "arrow": lambda u, v: np.minimum(_polygon(u, v + 0.25, 3), _bar(u, v - 0.5, 0.28, 0.5)),
    "hourglass": lambda u, v: np.maximum((np.abs(u) - np.abs(v) * 0.8) * 0.78 - 0.1, np.abs(v) - 0.9),
    "bow": lambda u, v: np.maximum((np.abs(v) - np.abs(u) * 0.8) * 0.78 - 0.1, np.abs(u) - 0.9),
    "tee": lambda u, v: np.minimum(_bar(u, v + 0.65, 0.9, 0.28), _bar(u, v - 0.1, 0.28, 0.8)),
}

# Where the second colour goes, given the distance to the edge and the place along both axes, all in pixels.
_HALF = 2.3
PATTERNS = {
    "plain": lambda d, x, y: np.zeros_like(d),
    "rimmed": lambda d, x, y: np.clip(d + 2.2, 0, 1),
    "banded": lambda d, x, y: _waves(y),
    "striped": lambda d, x, y: _waves(x),
    "checked": lambda d, x, y: np.abs(_waves(x) - _waves(y)),
}

CLASS_NAMES = tuple(f"{pattern} {shape}" for shape in SHAPES for pattern in PATTERNS)


def _waves(x):
    """Stripes of `_HALF` pixels, 0 and 1 in turn, with soft edges."""
    return np.clip(0.5 + 2 * np.sin(np.pi * x / _HALF), 0, 1)


def make_shapes(seed: int = 0, train_per_class: int = 100, test_per_class: int = 20) -> Dataset:
    """Draws the data set called "shapes".

    Images are uint8 `[n, 32, 32, 3]`, labels int32 `[n]`, n = 100 classes times the images per class, in random order.
    Training and test images come from random streams of their own.
    """
    train, test = (
        _draw(np.random.default_rng([seed, stream]), per_class)
        for stream, per_class in enumerate((train_per_class, test_per_class))
    )
    superclass_of = tuple(shape for shape in range(len(SHAPES)) for _ in PATTERNS)
    return Dataset("shapes", train, test, CLASS_NAMES, tuple(SHAPES), superclass_of)


def _draw(rng: np.random.Generator, per_class: int) -> Split:
    classes = len(SHAPES) * len(PATTERNS)
    labels = rng.permutation(np.repeat(np.arange(classes, dtype=np.int32), per_class))
    images = np.empty((len(labels), SIZE, SIZE, 3), np.uint8)
    for shape, distance in enumerate(SHAPES.values()):
        rows = np.flatnonzero(labels // len(PATTERNS) == shape)
        images[rows] = _draw_shape(rng, distance, labels[rows] % len(PATTERNS))
    return Split(images, labels)


def _draw_shape(rng: np.random.Generator, distance, patterns: np.ndarray) -> np.ndarray:
    """Images of one shape in the given patterns."""
    n = len(patterns)

    def uniform(low, high, *shape):
        return rng.uniform(low, high, (n, *shape)).astype(np.float32)

    radius, tilt = uniform(9, 13, 1, 1), uniform(-0.2, 0.2, 1, 1)
    center_x, center_y = uniform(-4, 4, 1, 1), uniform(-4, 4, 1, 1)
    axis = np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2
    dx, dy = axis - center_x, axis[:, None] - center_y
    x, y = np.cos(tilt) * dx + np.sin(tilt) * dy, np.cos(tilt) * dy - np.sin(tilt) * dx
    inside = (distance(x / radius, y / radius) * radius).astype(np.float32)
    phase_x, phase_y = uniform(0, 2 * _HALF, 1, 1), uniform(0, 2 * _HALF, 1, 1)
    second = np.zeros_like(inside)
    for number, pattern in enumerate(PATTERNS.values()):
        rows = patterns == number
        second[rows] = pattern(inside[rows], (x + phase_x)[rows], (y + phase_y)[rows])
    back, first, other = _colors(rng, n)
    figure = first + (other - first) * second[..., None]
    image = back + (figure - back) * np.clip(0.5 - inside, 0, 1)[..., None]
    image += rng.normal(0, 12, image.shape).astype(np.float32)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _colors(rng: np.random.Generator, n: int) -> list[np.ndarray]:
    """Three colours an image, `[n, 1, 1, 3]` each, that can be told apart: background, figure and pattern."""
    colors = rng.uniform(0, 255, (n, 3, 3)).astype(np.float32)
    while True:
        gaps = np.abs(colors - np.roll(colors, 1, axis=1)).sum(axis=2)
        close = gaps.min(axis=1) < 180
        if not close.any():
            return [colors[:, None, None, k] for k in range(3)]
        colors[close] = rng.uniform(0, 255, (int(close.sum()), 3, 3)).astype(np.float32)
