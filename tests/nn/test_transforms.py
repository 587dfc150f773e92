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


def test_to_float_equals_totensor_and_normalize(torch):
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
    scaled = torch.tensor(pixels).float().div(255)
    np.testing.assert_array_equal(jax.jit(lambda x: to_float(x, normalize=False))(pixels), scaled.numpy())
    expected = scaled.sub(0.5).div(0.5).numpy()
    ours = jax.jit(lambda x: to_float(x, normalize=True))(pixels)
    np.testing.assert_array_equal(ours, expected)
    assert (ours.min(), ours.max()) == (-1, 1)


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
