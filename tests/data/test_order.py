import jax
import numpy as np
import pytest

from cifar_jax.data.order import cut, epoch_order, split_batches, steps_per_epoch


def test_an_epoch_sees_every_image_once_in_an_order_of_its_own():
    key = jax.random.key(3)
    first, second = (epoch_order(key, epoch, 1000) for epoch in (0, 1))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(1000))
    assert (first != second).mean() > 0.9
    np.testing.assert_array_equal(first, epoch_order(key, 0, 1000))
    assert (first != epoch_order(jax.random.key(4), 0, 1000)).mean() > 0.9


@pytest.mark.parametrize(("n", "batch_size"), [(10, 5), (11, 5), (14, 5), (3, 5), (5, 5), (1, 1)])
def test_shuffle_keeps_every_image(n, batch_size):
    indices, mask = split_batches(np.arange(n, dtype=np.int32)[::-1], batch_size)
    assert indices.shape == (steps_per_epoch(n, batch_size, "shuffle"), batch_size) == (-(-n // batch_size), batch_size)
    assert (mask is None) == (n % batch_size == 0)
    kept = indices.ravel() if mask is None else indices[mask]
    assert kept.tolist() == list(range(n))[::-1]


def test_cut_goes_with_the_batches():
    values = np.array([True, True, False])
    assert cut(values, 2, 2).tolist() == [[True, True], [False, False]]
    assert cut(values, 1, 2).tolist() == [[True, True]]


@pytest.mark.parametrize(("n", "batch_size", "steps"), [(10, 5, 2), (14, 5, 2), (50_000, 64, 781), (3, 5, 0)])
def test_whole_batches_drops_the_remainder(n, batch_size, steps):
    indices, mask = split_batches(np.arange(n, dtype=np.int32), batch_size, "whole_batches")
    assert steps_per_epoch(n, batch_size, "whole_batches") == steps
    assert indices.shape == (steps, batch_size)
    assert mask is None
    assert indices.ravel().tolist() == list(range(steps * batch_size))
