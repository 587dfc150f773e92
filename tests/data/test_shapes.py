import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cifar_jax.data.dataset import check_dataset
from cifar_jax.data.shapes import PATTERNS, SHAPES, make_shapes


@pytest.fixture(scope="module")
def shapes():
    return make_shapes()


def test_a_hundred_classes_in_twenty_superclasses(shapes):
    check_dataset(shapes)
    assert (len(shapes.class_names), len(shapes.superclass_names)) == (100, 20)
    assert np.bincount(shapes.superclass_of).tolist() == [5] * 20
    for name, superclass in zip(shapes.class_names, shapes.superclass_of, strict=True):
        assert name.endswith(shapes.superclass_names[superclass])
    assert np.bincount(shapes.train.labels).tolist() == [100] * 100
    assert np.bincount(shapes.test.labels).tolist() == [20] * 100


def test_the_first_images_are_a_fair_sample(shapes):
    assert len(set(shapes.train.labels[:500].tolist())) > 95


def test_a_seed_gives_the_same_images():
    first, again, other = (make_shapes(seed, 2, 1) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.train.images, again.train.images)
    np.testing.assert_array_equal(first.train.labels, again.train.labels)
    assert (first.train.images != other.train.images).mean() > 0.9
    assert first.train.labels[:5].tolist() == [40, 60, 31, 15, 44]


def test_training_and_test_images_differ(shapes):
    train = {image.tobytes() for image in shapes.train.images}
    assert not any(image.tobytes() in train for image in shapes.test.images)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_its_own_mirror_image(shape):
    """Or flips, which keep the label, would make another class of it. A star's points may be a pixel off."""
    axis = np.linspace(-1.1, 1.1, 64, dtype=np.float32)
    inside = SHAPES[shape](axis[None, :], axis[:, None]) < 0
    assert 0.15 < inside.mean() < 0.75
    np.testing.assert_array_equal(inside, inside[:, ::-1])


def test_patterns_differ(shapes):
    assert len(PATTERNS) == 5
    coordinates = np.linspace(-10, 0, 21, dtype=np.float32)
    drawn = {pattern(coordinates, coordinates, 2 * coordinates).tobytes() for pattern in PATTERNS.values()}
    assert len(drawn) == 5


@pytest.mark.slow
def test_a_linear_classifier_stays_under_40_percent(shapes):
    """Softmax regression on pixels, by Adam until it fits the training images well, at its best on the test set."""
    x, y = (jnp.asarray(a) for a in shapes.train)
    scale = lambda images: images.reshape(len(images), -1).astype(jnp.float32) / 127.5 - 1  # noqa: E731
    x, x_test = scale(x), scale(jnp.asarray(shapes.test.images))
    tx = optax.adam(2e-3)
    weights = jnp.zeros((3072, 100))

    @jax.jit
    def step(weights, opt_state):
        def loss(w):
            return optax.softmax_cross_entropy_with_integer_labels(x @ w, y).mean()

        updates, opt_state = tx.update(jax.grad(loss)(weights), opt_state)
        weights = optax.apply_updates(weights, updates)
        return weights, opt_state, jnp.mean(jnp.argmax(x_test @ weights, 1) == shapes.test.labels)

    opt_state, best = tx.init(weights), 0.0
    for _ in range(30):
        weights, opt_state, test = step(weights, opt_state)
        best = max(best, float(test))
    assert float(jnp.mean(jnp.argmax(x @ weights, 1) == y)) > 0.2  # it does learn
    assert 0.02 < best < 0.40
