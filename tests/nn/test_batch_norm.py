import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from cifar_jax.nn.batch_norm import (
    RULES,
    BatchStats,
    batch_moments,
    batch_norm,
    flax_rule,
    init_stats,
    lecture_rule,
    torch_rule,
)

SHAPES = [(6, 3), (4, 5, 3), (4, 5, 2, 3)]


def reference(x, scale, bias, stats, *, keep, unbiased, epsilon=1e-5):
    """The paper's formulas in NumPy and double precision."""
    x = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
    n, mean, var = len(x), x.mean(0), x.var(0)
    y = (x - mean) / np.sqrt(var + epsilon) * scale + bias
    running = var * n / (n - 1) if unbiased else var
    return y, keep * stats.mean + (1 - keep) * mean, keep * stats.var + (1 - keep) * running


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rule", [torch_rule(0.1), flax_rule(0.9), lecture_rule()])
def test_training_matches_the_formulas(x64, rng, shape, rule):
    x, scale, bias = rng.normal(3, 2, shape), rng.normal(size=3), rng.normal(size=3)
    stats = BatchStats(jnp.asarray(rng.normal(size=3)), jnp.asarray(rng.uniform(1, 2, 3)))
    y, new = batch_norm(jnp.asarray(x), jnp.asarray(scale), jnp.asarray(bias), stats, rule=rule, train=True)
    expected = reference(x, scale, bias, stats, keep=rule.keep, unbiased=rule.unbiased)
    np.testing.assert_allclose(np.reshape(y, expected[0].shape), expected[0], rtol=0, atol=1e-13)
    np.testing.assert_allclose(new, expected[1:], rtol=0, atol=1e-13)


def test_the_rules_are_the_three_conventions():
    assert torch_rule(0.1) == (0.9, True)
    assert flax_rule(0.99) == (0.99, False)
    assert lecture_rule(0.1) == (0.1, False)
    assert set(RULES) == {"torch", "flax", "lecture"}


def torch_layer(torch, scale, bias, stats, momentum=0.1):
    layer = torch.nn.BatchNorm2d(len(scale), momentum=momentum).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(scale))
        layer.bias.copy_(torch.tensor(bias))
        layer.running_mean.copy_(torch.tensor(np.asarray(stats.mean)))
        layer.running_var.copy_(torch.tensor(np.asarray(stats.var)))
    return layer


def test_ten_steps_follow_torch(torch, x64, rng):
    """Output, gradients and running statistics. 1e-12: rounding of sums of 128 doubles."""
    scale, bias, stats = rng.normal(size=3), rng.normal(size=3), init_stats(3, jnp.float64)
    layer = torch_layer(torch, scale, bias, stats)

    def run(x, scale, bias, weights, stats, rule):
        y, stats = batch_norm(x, scale, bias, stats, rule=rule, train=True)
        return jnp.sum(y * weights), (y, stats)

    naive = stats
    for _ in range(10):
        x, weights = rng.normal(2, 3, (8, 4, 4, 3)), rng.normal(size=(8, 4, 4, 3))
        layer.zero_grad()
        tx = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
        ty = layer(tx)
        (ty * torch.tensor(weights.transpose(0, 3, 1, 2))).sum().backward()
        grads, (y, stats) = jax.grad(run, argnums=(0, 1, 2), has_aux=True)(
            *map(jnp.asarray, (x, scale, bias, weights)), stats, torch_rule(0.1)
        )
        _, (_, naive) = run(*map(jnp.asarray, (x, scale, bias, weights)), naive, flax_rule(0.1))
        close = {"rtol": 0, "atol": 1e-12}
        np.testing.assert_allclose(y, ty.detach().numpy().transpose(0, 2, 3, 1), **close)
        np.testing.assert_allclose(grads[0], tx.grad.numpy().transpose(0, 2, 3, 1), **close)
        np.testing.assert_allclose(grads[1], layer.weight.grad.numpy(), **close)
        np.testing.assert_allclose(grads[2], layer.bias.grad.numpy(), **close)
        np.testing.assert_allclose(stats.mean, layer.running_mean.numpy(), **close)
        np.testing.assert_allclose(stats.var, layer.running_var.numpy(), **close)
    # "momentum 0.1" read the wrong way misses by far more than the bound.
    assert np.abs(naive.var - layer.running_var.numpy()).max() > 0.1
    layer.eval()
    x = rng.normal(2, 3, (8, 4, 4, 3))
    y, same = batch_norm(jnp.asarray(x), jnp.asarray(scale), jnp.asarray(bias), stats, rule=torch_rule(), train=False)
    expected = layer(torch.tensor(x.transpose(0, 3, 1, 2))).detach().numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12)
    assert same is stats


@pytest.mark.parametrize("masked", [False, True])
def test_gradient_against_finite_differences(x64, rng, masked):
    x, scale, bias = (jnp.asarray(rng.normal(size=s)) for s in ((5, 2, 2, 3), (3,), (3,)))
    weights = jnp.asarray(rng.normal(size=x.shape))
    mask = jnp.array([True, True, False, True, False]) if masked else None

    def loss(x, scale, bias):
        x, scale, bias = map(jnp.asarray, (x, scale, bias))  # check_grads passes NumPy arrays
        y, _ = batch_norm(x, scale, bias, init_stats(3, x.dtype), rule=torch_rule(), train=True, mask=mask)
        return jnp.sum(y * weights * (1 if mask is None else mask.reshape(-1, 1, 1, 1)))

    check_grads(loss, (x, scale, bias), order=1, modes=["rev"], rtol=1e-6)


def test_running_statistics_carry_no_gradient(rng):
    def loss(x):
        return sum(jnp.sum(s) for s in batch_norm(x, None, None, init_stats(3), rule=torch_rule(), train=True)[1])

    assert not np.any(jax.grad(loss)(jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)))


@pytest.mark.parametrize(
    ("offset", "bound", "one_pass_error"), [(10, 4e-6, 1e-5), (100, 4e-5, 1e-3), (1000, 4e-4, 0.1)]
)
def test_variance_does_not_cancel(rng, offset, bound, one_pass_error):
    """Float32 cannot hold a mean of 1000 deviations better than 6e-5; E[x^2] - E[x]^2 is off by a quarter there."""
    x = rng.normal(offset, 1, (64, 8, 8, 4)).astype(np.float32)
    y, _ = batch_norm(jnp.asarray(x), None, None, init_stats(4), rule=torch_rule(), train=True)
    exact = reference(x, 1, 0, init_stats(4), keep=0.9, unbiased=True)[0].reshape(x.shape)
    assert np.abs(y - exact).max() < bound
    mean = jnp.mean(x, (0, 1, 2), keepdims=True)
    var = jnp.mean(jnp.square(x), (0, 1, 2), keepdims=True) - jnp.square(mean)
    assert not np.abs((x - mean) / jnp.sqrt(var + 1e-5) - exact).max() <= one_pass_error  # NaN below 0


def test_an_outlier_where_the_shift_is_taken(rng):
    """100 deviations off, it costs the variance 100^2 roundings of 6e-8; the shift changes nothing else."""
    x = rng.normal(0, 1, (64, 8, 8, 4)).astype(np.float32)
    x[0, 4, 4] = 100
    mean, var, _ = batch_moments(jnp.asarray(x), None)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=0, atol=2e-5)
    np.testing.assert_allclose(var, exact.var((0, 1, 2)), rtol=1e-3)


@pytest.mark.parametrize(("offset", "bound"), [(10, 1e-4), (100, 1e-4), (1000, 1e-3)])
def test_moments_of_parts_are_those_of_the_whole(rng, offset, bound):
    """Put together along a mapped axis as along a mesh of four devices, of which the last has one row and 5 to fill up.

    Relative to the variance; adding squares of the parts' means loses a quarter of it at 1000 deviations.
    """
    x, mask = rng.normal(offset, 1, (4, 6, 4, 4, 2)).astype(np.float32), np.ones((4, 6), bool)
    mask[3, 1:] = False
    parts = jax.vmap(lambda x, mask: batch_moments(x, mask, "data"), axis_name="data")(
        jnp.asarray(x), jnp.asarray(mask)
    )
    exact = x[mask].astype(np.float64)
    for mean, var, count in zip(*parts, strict=True):
        np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-6)
        np.testing.assert_allclose(var, exact.var((0, 1, 2)), rtol=bound)
        assert count == 19 * 16


@pytest.mark.parametrize("rule", [torch_rule(), lecture_rule()])
def test_masked_rows_change_nothing(rng, rule):
    x = jnp.asarray(rng.normal(2, 3, (5, 4, 4, 3)), jnp.float32)
    padded = jnp.concatenate([x, jnp.full((3, 4, 4, 3), jnp.nan)])
    mask = jnp.arange(8) < 5
    y, stats = batch_norm(x, None, None, init_stats(3), rule=rule, train=True)
    y_padded, stats_padded = batch_norm(padded, None, None, init_stats(3), rule=rule, train=True, mask=mask)
    np.testing.assert_allclose(y_padded[:5], y, rtol=0, atol=1e-6)
    np.testing.assert_allclose(stats_padded, stats, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("dtype", "kept"), [("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")])
def test_types(x64, rng, dtype, kept):
    x = jnp.asarray(rng.normal(100, 1, (64, 8, 8, 2)), dtype)
    y, stats = batch_norm(x, None, None, init_stats(2, kept), rule=torch_rule(), train=True)
    assert y.dtype == dtype
    assert stats.mean.dtype == stats.var.dtype == kept
    # bfloat16 holds no more than 8 bits, so sums in it would lose a mean of 100 altogether.
    exact = np.asarray(x, np.float64).mean((0, 1, 2))
    np.testing.assert_allclose(stats.mean, 0.1 * exact, rtol=1e-6)


def test_affine_is_optional(rng):
    x = jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)
    plain, _ = batch_norm(x, None, None, init_stats(3), rule=torch_rule(), train=True)
    unit, _ = batch_norm(x, jnp.ones(3), jnp.zeros(3), init_stats(3), rule=torch_rule(), train=True)
    np.testing.assert_array_equal(plain, unit)


def test_epsilon_stands_inside_the_root():
    x = jnp.array([[-1.0], [1.0]])
    y, _ = batch_norm(x, None, None, init_stats(1), rule=torch_rule(), train=True, epsilon=3.0)
    np.testing.assert_allclose(y, x / 2)


@pytest.mark.parametrize("shape", [(1, 3), (1, 1, 1, 3)])
def test_one_value_per_channel_is_refused(torch, shape):
    with pytest.raises(ValueError, match=r"takes more than one value per channel, got an input of shape \(1, "):
        batch_norm(jnp.ones(shape), None, None, init_stats(3), rule=torch_rule(), train=True)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        torch.nn.BatchNorm1d(3)(torch.ones(1, 3))
    batch_norm(jnp.ones(shape), None, None, init_stats(3), rule=torch_rule(), train=False)


def torch_batch_norm(torch, x, stats, *, train=True, **options):
    """The output in our layout, and the running statistics after it."""
    mean, var = (torch.tensor(np.array(value)) for value in stats)
    x = torch.tensor(np.array(x))
    x = x.movedim(-1, 1) if x.ndim > 1 else x
    y = torch.nn.functional.batch_norm(x, mean, var, training=train, momentum=0.1, **options)
    return y.movedim(1, -1).numpy(), (mean.numpy(), var.numpy())


@pytest.mark.parametrize("shape", [(0, 4, 4, 3), (0, 3), (2, 0, 4, 3), (2, 4, 4, 0)])
@pytest.mark.parametrize("train", [True, False])
def test_an_empty_batch_comes_out_empty_and_teaches_nothing(torch, shape, train):
    x, stats = np.zeros(shape, np.float32), BatchStats(jnp.full(shape[-1:], 3.0), jnp.full(shape[-1:], 2.0))
    expected, learned = torch_batch_norm(torch, x, stats, train=train)
    y, new = batch_norm(jnp.asarray(x), None, None, stats, rule=torch_rule(0.1), train=train)
    assert y.shape == expected.shape
    np.testing.assert_array_equal(new, learned)


@pytest.mark.parametrize("filling", [1e4, np.nan, np.inf])
def test_a_masked_first_row_is_no_shift(torch, filling):
    """Not even where it is far off: 1e4 costs a variance of 0.25 all its digits. Nor does NaN come through."""
    x, mask = np.array([[filling], [0.0], [1.0]], np.float32), np.array([False, True, True])
    expected, learned = torch_batch_norm(torch, x[1:], init_stats(1))
    y, new = batch_norm(
        jnp.asarray(x), None, None, init_stats(1), rule=torch_rule(0.1), train=True, mask=jnp.asarray(mask)
    )
    np.testing.assert_allclose(y[1:], expected, rtol=1e-6)
    np.testing.assert_allclose(new, learned, rtol=1e-6)
    assert float(batch_moments(jnp.asarray(x), jnp.asarray(mask)).var[0]) == 0.25


def test_a_masked_row_of_nan_leaves_every_gradient_finite(rng):
    """Multiplied by a gradient of 0, it would be NaN all the same."""
    x = np.concatenate([rng.normal(size=(3, 2, 2, 3)), np.full((2, 2, 2, 3), np.nan)])[::-1].astype(np.float32)
    mask, weights = jnp.arange(5) >= 2, jnp.asarray(rng.normal(size=(3, 2, 2, 3)), jnp.float32)

    def loss(x, scale, bias, mask):
        y, _ = batch_norm(x, scale, bias, init_stats(3), rule=torch_rule(), train=True, mask=mask)
        return jnp.sum(y[-3:] * weights)

    affine = jnp.ones(3), jnp.zeros(3)
    found = jax.grad(loss, (0, 1, 2))(jnp.asarray(x), *affine, mask)
    expected = jax.grad(loss, (0, 1, 2))(jnp.asarray(x[2:]), *affine, None)
    np.testing.assert_array_equal(found[0][:2], 0)
    np.testing.assert_allclose(found[0][2:], expected[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(found[1:], expected[1:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("filling", [5.0, np.nan])
@pytest.mark.parametrize("rule", [torch_rule(), lecture_rule()])
def test_a_batch_of_masked_rows_alone_teaches_nothing(rng, filling, rule):
    """As an empty batch teaches torch nothing."""
    x, stats = jnp.full((4, 2, 2, 3), filling), BatchStats(jnp.full(3, 3.0), jnp.full(3, 2.0))
    y, new = batch_norm(x, None, None, stats, rule=rule, train=True, mask=jnp.zeros(4, bool))
    np.testing.assert_array_equal(new, stats)
    assert np.isfinite(y).all()


def test_bfloat16_gradients_are_rounded_once(torch, rng):
    """The error is that of rounding the exact gradient to bfloat16, as torch's is: 2^-9 of each value.

    Rounding what comes through the mean, the variance and the output each before they are added leaves many times that,
    where they cancel: here the incoming gradient is nearly the output itself.
    """
    x = jnp.asarray(rng.normal(3, 2, (64, 4, 4, 3)), jnp.bfloat16)
    weights = np.asarray(x, np.float64) + 1e-3 * rng.normal(size=x.shape)
    weights = jnp.asarray(weights, jnp.bfloat16)

    def gradient(x):
        def loss(x):
            y, _ = batch_norm(x, None, None, init_stats(3), rule=torch_rule(), train=True)
            return jnp.sum(y.astype(jnp.float32) * weights)

        return np.asarray(jax.grad(loss)(x), np.float64)

    its_x = torch.tensor(np.asarray(x, np.float32)).bfloat16().movedim(-1, 1).requires_grad_()
    y = torch.nn.functional.batch_norm(its_x, None, None, training=True)
    (y.float() * torch.tensor(np.asarray(weights, np.float32)).movedim(-1, 1)).sum().backward()
    theirs = its_x.grad.movedim(1, -1).double().numpy()
    exact = gradient(x.astype(jnp.float32))
    ours = gradient(x)
    assert np.abs(ours - exact).max() <= 2 * np.abs(theirs - exact).max()
    assert np.abs(ours - exact).max() <= 2**-8 * np.abs(exact).max()


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("shape", [(4, 3, 2), (4, 2, 2, 2, 3)])
def test_any_number_of_axes_from_two(torch, rng, shape, train):
    x, channels = rng.normal(2, 3, shape).astype(np.float32), shape[-1]
    expected, learned = torch_batch_norm(torch, x, init_stats(channels), train=train)
    y, new = batch_norm(jnp.asarray(x), None, None, init_stats(channels), rule=torch_rule(0.1), train=train)
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-6)
    np.testing.assert_allclose(new, learned, rtol=1e-5)


def test_an_epsilon_of_zero_is_for_evaluation_alone(torch):
    x, stats = np.array([[-1.0], [1.0]], np.float32), init_stats(1)
    for epsilon, train in ((0.0, True), (-1e-5, True), (-1e-5, False)):
        with pytest.raises(ValueError, match="takes an epsilon above 0, or of 0 in evaluation, got "):
            batch_norm(jnp.asarray(x), None, None, stats, rule=torch_rule(), train=train, epsilon=epsilon)
        with pytest.raises(ValueError, match="eps must be"):
            torch_batch_norm(torch, x, stats, train=train, eps=epsilon)
    expected, _ = torch_batch_norm(torch, x, stats, train=False, eps=0.0)
    y, _ = batch_norm(jnp.asarray(x), None, None, stats, rule=torch_rule(), train=False, epsilon=0.0)
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    ("x", "changes", "error", "message"),
    [
        (np.ones((2, 4, 4, 3), np.int32), {}, TypeError, "takes floating-point input, got int32"),
        (np.ones((2, 4, 4, 3), np.uint8), {}, TypeError, "takes floating-point input, got uint8"),
        (np.ones((2, 3), np.float32), {"mean": 1}, ValueError, r"a stats.mean of shape \(3,\) .*, got \(1,\)"),
        (np.ones((2, 3), np.float32), {"var": 1}, ValueError, r"a stats.var of shape \(3,\) .*, got \(1,\)"),
        (np.ones((2, 3), np.float32), {"weight": 1}, ValueError, r"a scale of shape \(3,\) .*, got \(1,\)"),
        (np.ones((2, 3), np.float32), {"bias": 4}, ValueError, r"a bias of shape \(3,\) .*, got \(4,\)"),
        (np.ones(3, np.float32), {}, ValueError, r"takes \[batch, ..., channels\], got an input of shape \(3,\)"),
    ],
)
def test_what_torch_refuses_is_refused(torch, x, changes, error, message, train):
    """Without the shape checks of the tests, as a user calls it."""
    sizes = {name: np.ones(changes.get(name, 3), np.float32) for name in ("mean", "var", "weight", "bias")}
    stats = BatchStats(jnp.asarray(sizes["mean"]), jnp.asarray(sizes["var"]))
    scale, bias = jnp.asarray(sizes["weight"]), jnp.asarray(sizes["bias"])
    with pytest.raises(error, match=message):
        inspect.unwrap(batch_norm)(jnp.asarray(x), scale, bias, stats, rule=torch_rule(), train=train)
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch_batch_norm(
            torch, x, stats, train=train, weight=torch.tensor(sizes["weight"]), bias=torch.tensor(sizes["bias"])
        )
