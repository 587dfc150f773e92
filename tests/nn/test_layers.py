import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax.nn.batch_norm import lecture_rule, torch_rule
from cifar_jax.nn.layers import BatchNorm, max_pool, torch_bias_init, torch_kernel_init


@pytest.fixture
def norm(rng):
    module, x = BatchNorm(rule=torch_rule(0.1)), jnp.asarray(rng.normal(5, 2, (8, 4, 4, 3)), jnp.float32)
    return module, module.init(jax.random.key(0), x, train=True), x


def test_starts_with_scale_one_and_untouched_statistics(norm):
    _, variables, _ = norm
    expected = {"params": {"scale": [1] * 3, "bias": [0] * 3}, "batch_stats": {"mean": [0] * 3, "var": [1] * 3}}
    assert jax.tree.map(lambda a: a.tolist(), variables) == expected


def test_training_returns_the_new_statistics(norm):
    module, variables, x = norm
    y, new = module.apply(variables, x, train=True, mutable=["batch_stats"])
    assert abs(float(y.mean())) < 1e-5
    np.testing.assert_allclose(new["batch_stats"]["mean"], 0.1 * x.mean((0, 1, 2)), rtol=1e-5)


def test_forgetting_mutable_is_explained(norm):
    module, variables, x = norm
    with pytest.raises(ValueError, match=r"call apply\(..., mutable=\['batch_stats'\]\)"):
        module.apply(variables, x, train=True)


def test_evaluation_changes_nothing(norm):
    module, variables, x = norm
    y, new = module.apply(variables, x, train=False, mutable=["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, new["batch_stats"], variables["batch_stats"])
    np.testing.assert_allclose(y, module.apply(variables, x, train=False))
    np.testing.assert_allclose(y, x / np.sqrt(1 + 1e-5), rtol=1e-6)


def test_without_affine_there_are_no_parameters(norm):
    variables = BatchNorm(rule=lecture_rule(), affine=False).init(jax.random.key(0), norm[2], train=False)
    assert "params" not in variables


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_statistics_keep_their_type_over_steps(x64, dtype):
    """Otherwise a second trace, and an error in a scan's carry."""
    module, x = BatchNorm(rule=torch_rule()), jnp.arange(12, dtype=dtype).reshape(4, 3)
    variables = module.init(jax.random.key(0), x, train=False)
    _, new = module.apply(variables, x, train=True, mutable=["batch_stats"])
    before, after = (jax.tree.map(lambda a: str(a.dtype), v["batch_stats"]) for v in (variables, new))
    assert before == after
    assert set(after.values()) == {"float64" if dtype == "float64" else "float32"}


def test_initial_weights_are_distributed_as_in_torch(torch):
    """Range and deviation of 73,728 weights and of biases; lecun_normal's deviation is 1.7 times larger."""
    torch.manual_seed(0)
    ours = np.asarray(torch_kernel_init(jax.random.key(0), (3, 3, 64, 128)))
    theirs = torch.nn.Conv2d(64, 128, 3).weight.detach().numpy()
    np.testing.assert_allclose(ours.std(), theirs.std(), rtol=0.02)
    np.testing.assert_allclose([ours.min(), ours.max()], [theirs.min(), theirs.max()], rtol=0.001)
    lecun = jax.nn.initializers.lecun_normal()(jax.random.key(0), (3, 3, 64, 128))
    assert lecun.std() > 1.6 * theirs.std()
    layer = torch.nn.Linear(256, 10000)
    bias = np.asarray(torch_bias_init(256)(jax.random.key(0), (10000,)))
    np.testing.assert_allclose(bias.std(), layer.bias.detach().numpy().std(), rtol=0.03)
    np.testing.assert_allclose(np.abs(bias).max(), 1 / 16, rtol=0.001)


def torch_pool(torch, x, weights):
    """torch's output and the gradient of its product with weights, in our layout."""
    tx = torch.tensor(x.transpose(0, 3, 1, 2)).requires_grad_()
    y = torch.nn.functional.max_pool2d(tx, 2)
    (y * torch.tensor(weights.transpose(0, 3, 1, 2))).sum().backward()
    return (a.detach().numpy().transpose(0, 2, 3, 1) for a in (y, tx.grad))


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (2, 2), (5, 2)])
@pytest.mark.parametrize("levels", [2, 3, 1000])
def test_max_pool_is_torchs_and_its_gradient_goes_to_the_first_of_equals(torch, rng, size, levels):
    """Equal to the bit; two levels make almost every window a tie."""
    x = rng.integers(0, levels, (6, *size, 3)).astype(np.float32)
    weights = rng.normal(size=(6, size[0] // 2, size[1] // 2, 3)).astype(np.float32)
    ours = jax.jit(jax.grad(lambda a: jnp.sum(max_pool(a) * weights)))
    y, grad = torch_pool(torch, x, weights)
    np.testing.assert_array_equal(max_pool(jnp.asarray(x)), y)
    np.testing.assert_array_equal(ours(jnp.asarray(x)), grad)
    if levels == 2 and size == (8, 8):  # sharing the gradient between equals, as reshape and max does, is another one
        shared = jax.grad(lambda a: jnp.sum(a.reshape(6, 4, 2, 4, 2, 3).max((2, 4)) * weights))(jnp.asarray(x))
        assert np.abs(shared - grad).max() > 0.1


@pytest.mark.parametrize("shape", [(2, 1, 4, 3), (2, 4, 1, 3), (2, 0, 4, 3), (1, 1, 3), (2, 4, 4, 0), (2, 4, 4, 4, 3)])
def test_max_pool_refuses_what_torch_refuses(torch, shape):
    with pytest.raises(ValueError, match=r"max_pool takes \[height, width, channels\] or a batch of it, of two pixels"):
        inspect.unwrap(max_pool)(jnp.zeros(shape))
    with pytest.raises(RuntimeError):
        torch.nn.functional.max_pool2d(torch.zeros(shape).movedim(-1, -3), 2)


@pytest.mark.parametrize("shape", [(0, 4, 4, 3), (4, 5, 3), (2, 3, 2, 1)])
@pytest.mark.parametrize("dtype", ["float32", "int32", "uint8"])
def test_max_pool_defines_what_torch_defines(torch, rng, shape, dtype):
    x = rng.integers(0, 100, shape).astype(dtype)
    expected = torch.nn.functional.max_pool2d(torch.tensor(x).movedim(-1, -3), 2).movedim(-3, -1).numpy()
    y = max_pool(jnp.asarray(x))
    np.testing.assert_array_equal(y, expected)
    assert (y.shape, y.dtype) == (expected.shape, expected.dtype)


def test_max_pool_gives_nan_where_a_window_has_one(torch):
    x = np.array([[1.0, np.nan], [2.0, 3.0]], np.float32).reshape(1, 2, 2, 1)
    y, _ = torch_pool(torch, x, np.ones((1, 1, 1, 1), np.float32))
    np.testing.assert_array_equal(max_pool(jnp.asarray(x)), y)


def test_the_module_refuses_statistics_of_another_network(norm):
    """One value for three channels would be spread over them without a word."""
    module, variables, x = norm
    stats = {"mean": jnp.zeros(1), "var": jnp.ones(1)}
    with pytest.raises(ValueError, match=r"takes a stats.mean of shape \(3,\) .*, got \(1,\)"):
        module.apply({**variables, "batch_stats": stats}, x, train=False)
