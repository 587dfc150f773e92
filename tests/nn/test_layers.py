import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax.nn.batch_norm import lecture_rule, normalize_batch, torch_rule
from cifar_jax.nn.layers import BatchNorm, BatchNormRelu, max_pool, norm_relu, torch_bias_init, torch_kernel_init
from cifar_jax.nn.models import create_model
from cifar_jax.runs.steps import loss_and_grads


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


def one_by_one(x, scale, bias, mask, epsilon, pool):
    """What `norm_relu` computes, with JAX's own gradients of BatchNorm and ReLU and Flax's pool."""
    y, moments = normalize_batch(x, scale, bias, epsilon=epsilon, mask=mask)
    return nn.max_pool(nn.relu(y), (2, 2), strides=(2, 2)) if pool else nn.relu(y), moments


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_norm_relu_follows_torch(torch, x64, rng, size, pool):
    """Output, moments and gradients. 1e-12: rounding of sums of 500 doubles.

    Three levels make ties in most windows, and windows of nothing but zeros after ReLU.
    """
    x = rng.integers(0, 3, (8, *size, 3)).astype(float)
    scale, bias = np.array([1.5, -0.7, 0.3]), np.array([0.1, 0.2, -0.3])
    tx, *affine = (torch.tensor(a).requires_grad_() for a in (x.transpose(0, 3, 1, 2), scale, bias))
    ty = torch.relu(torch.nn.functional.batch_norm(tx, None, None, *affine, training=True))
    ty = torch.nn.functional.max_pool2d(ty, 2) if pool else ty
    weights = rng.normal(size=ty.shape)
    (ty * torch.tensor(weights)).sum().backward()

    def loss(x, scale, bias):
        y, moments = norm_relu(x, scale, bias, None, 1e-5, pool)
        return jnp.sum(y * weights.transpose(0, 2, 3, 1)), (y, moments)

    arguments = [jnp.asarray(a) for a in (x, scale, bias)]
    grads, (y, moments) = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*arguments)
    close = {"rtol": 0, "atol": 1e-12}
    np.testing.assert_allclose(y, ty.detach().numpy().transpose(0, 2, 3, 1), **close)
    np.testing.assert_allclose(grads[0], tx.grad.numpy().transpose(0, 2, 3, 1), **close)
    for ours, theirs in zip(grads[1:], affine, strict=True):
        np.testing.assert_allclose(ours, theirs.grad.numpy(), **close)
    np.testing.assert_allclose(moments[:2], [x.mean((0, 1, 2)), x.var((0, 1, 2))], **close)


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_norm_relu_with_rows_that_fill_up_the_batch(x64, rng, affine, pool):
    """They have no share in the statistics, but an output and, here, a gradient. 1e-12: rounding of doubles."""
    x, mask = jnp.asarray(rng.normal(1, 2, (6, 4, 4, 3))), jnp.arange(6) < 4
    scale, bias = (jnp.asarray(rng.normal(size=3)) if affine else None for _ in range(2))
    weights = jnp.asarray(rng.normal(size=(6, 2, 2, 3) if pool else x.shape))

    def gradient(function):
        loss = lambda x, *affine: jnp.sum(function(x, *affine, mask, 1e-5, pool)[0] * weights)  # noqa: E731
        return jax.jit(jax.grad(loss, (0, 1, 2) if affine else 0))(x, scale, bias)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), gradient(norm_relu), gradient(one_by_one)
    )
    assert np.abs(jax.tree.leaves(gradient(norm_relu))[0][4:]).max() > 0.1


def test_max_pool_loses_no_gradient_in_a_compiled_network(rng, monkeypatch):
    """Where activations are large, XLA computes the pool's input a second time, with other roundings, for the gradient.

    A gradient that looks for the value that equals the largest then finds none, and is off by more than half.
    """
    x, labels = jnp.asarray(rng.normal(size=(100, 32, 32, 3)), jnp.float32), jnp.asarray(rng.integers(0, 100, 100))
    model = create_model("cnn6", norm_rule=torch_rule(), stages=((8, 64), (8, 8), (8, 8)))
    variables = model.init(jax.random.key(0), x, train=False)

    def gradients():
        jax.clear_caches()  # the network is traced anew, with the pool that it finds
        compiled = jax.jit(lambda p, s: loss_and_grads(p, s, x, labels, None, model=model).grads)
        return compiled(variables["params"], variables["batch_stats"])

    ours = gradients()
    monkeypatch.setattr(BatchNormRelu, "_train", lambda self, *args: one_by_one(*args, self.epsilon, self.pool))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max()), ours, gradients())
