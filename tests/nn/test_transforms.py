from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import PIL
import pytest
from PIL import Image

from cifar_jax.nn.transforms import Transform, flip, resize, to_float, transform_eval, transform_train


@pytest.fixture
def images(rng):
    """Noise, the hardest case for rounding, and a few images of only extreme pixels, the hardest for clipping."""
    noise = rng.integers(0, 256, (12, 32, 32, 3), np.uint8)
    noise[8:] = np.where(noise[8:] < 128, 0, 255)
    return noise


def pillow_resize(images, size):
    return np.stack([np.asarray(Image.fromarray(i).resize((size, size), Image.Resampling.BICUBIC)) for i in images])


@pytest.mark.parametrize("size", [16, 20, 24, 31, 32, 33, 40, 48, 64, 96, 128, 224])
def test_resize_equals_pillow_on_every_pixel(images, size):
    np.testing.assert_array_equal(
        jax.jit(resize, static_argnums=1)(jnp.asarray(images), size), pillow_resize(images, size)
    )


def test_jax_image_resize_is_another_function(images):
    """The naive port misses, so that the test above can fail."""
    naive = jax.image.resize(images.astype(np.float32), (12, 64, 64, 3), "cubic")
    naive = np.clip(np.round(naive), 0, 255)
    assert (naive != pillow_resize(images, 64)).mean() > 0.05


@pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="before Pillow 13 the width always comes first")
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(45, 32, 32), (64, 20, 32), (33, 31, 32), (20, 64, 32), (64, 96, 32), (16, 20, 32), (32, 20, 32), (200, 10, 64)],
)
def test_resize_equals_pillow_on_pictures_that_are_not_square(rng, height, width, size):
    images = rng.integers(0, 256, (2, height, width, 3), np.uint8)
    np.testing.assert_array_equal(resize(jnp.asarray(images), size), pillow_resize(images, size))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("normalize", [False, True])
def test_to_float_equals_totensor_and_normalize(torch, x64, dtype, normalize):
    """To the bit, for every pixel, alone and compiled together with a flip."""
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)

    def by_torch(images):
        scaled = torch.tensor(images).to(getattr(torch, dtype)).div(255)
        return (scaled.sub(0.5).div(0.5) if normalize else scaled).numpy()

    ours = jax.jit(lambda x: to_float(x, normalize=normalize, dtype=jnp.dtype(dtype)))(pixels)
    np.testing.assert_array_equal(ours, by_torch(pixels))
    assert (ours.min(), ours.max()) == (-1 if normalize else 0, 1)
    images = pixels.repeat(2, 1).repeat(2, 2)
    transform = Transform(32, "flip_first_half", normalize)
    ours = jax.jit(lambda x: transform_train(x, jax.random.key(0), transform, dtype=jnp.dtype(dtype)))
    np.testing.assert_array_equal(ours(images.repeat(2, 0)), by_torch(np.concatenate([images[:, :, ::-1], images])))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("exact", [None, "first", "second"])
def test_to_float_does_not_depend_on_a_fused_multiply_add(dtype, exact):
    """A compiler may leave either product of the sum unrounded. Worked out in fractions, of which one rounding is made.

    A product with the rounded reciprocal, the obvious way, is another number for many of them.
    """

    def rounded(fraction):
        near = dtype(float(fraction))
        around = [near, np.nextafter(near, dtype(2)), np.nextafter(near, dtype(-1))]
        return min(around, key=lambda value: abs(Fraction(float(value)) - fraction))

    first, second = dtype(257 / 65536), dtype(1 / 255 / 65536)
    for pixel in map(dtype, range(256)):
        products = {"first": Fraction(float(pixel)) * Fraction(float(first))}
        products["second"] = Fraction(float(pixel)) * Fraction(float(second))
        terms = [product if name == exact else Fraction(float(rounded(product))) for name, product in products.items()]
        assert rounded(sum(terms)) == pixel / dtype(255)
    assert sum(pixel * (1 / dtype(255)) != pixel / dtype(255) for pixel in map(dtype, range(256))) > 20


def test_to_float_looks_nothing_up():
    """A gather for each pixel is what a TPU spends thirty steps' time on."""
    lowered = jax.jit(lambda x: to_float(x, normalize=True)).lower(jnp.zeros((2, 32, 32, 3), jnp.uint8))
    assert "gather" not in lowered.as_text()


def test_flip_mirrors_only_the_chosen(images):
    chosen = np.arange(12) % 3 == 0
    flipped = flip(jnp.asarray(images), jnp.asarray(chosen))
    np.testing.assert_array_equal(flipped[chosen], images[chosen][:, :, ::-1])
    np.testing.assert_array_equal(flipped[~chosen], images[~chosen])


def was_flipped(images, x):
    plain = np.asarray(transform_eval(jnp.asarray(images), Transform()))
    same = (np.asarray(x) == plain).all((1, 2, 3))
    mirrored = (np.asarray(x) == plain[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all()
    return mirrored


def test_flip_has_probability_one_half(rng):
    images = jnp.asarray(rng.integers(0, 256, (1000, 32, 32, 3), np.uint8))
    first = was_flipped(images, transform_train(images, jax.random.key(0), Transform()))
    second = was_flipped(images, transform_train(images, jax.random.key(1), Transform()))
    # Four standard deviations of a binomial are 63.
    assert abs(first.sum() - 500) < 64
    assert abs((first == second).sum() - 500) < 64


@pytest.mark.parametrize(("mask", "expected"), [(None, 6), (np.arange(12) < 7, 3)])
def test_flip_first_half_counts_real_rows(images, mask, expected):
    mask = None if mask is None else jnp.asarray(mask)
    x = transform_train(jnp.asarray(images), jax.random.key(0), Transform(augment="flip_first_half"), mask=mask)
    np.testing.assert_array_equal(was_flipped(images, x), np.arange(12) < expected)


def test_flips_drawn_before_are_used(images):
    chosen = jnp.arange(12) % 3 == 0
    x = transform_train(jnp.asarray(images), jax.random.key(0), Transform(), flips=chosen)
    np.testing.assert_array_equal(was_flipped(images, x), chosen)


def test_without_augmentation_training_sees_the_image(images):
    x = transform_train(jnp.asarray(images), jax.random.key(0), Transform(augment="none"))
    assert not was_flipped(images, x).any()
