import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax.nn.batch_norm import batch_norm, init_stats, torch_rule
from cifar_jax.nn.models import NETWORKS, create_model


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(("name", "params", "stats"), [("cnn6", 1_172_004, 1_792), ("cnn10", 7_689_252, 5_376)])
@pytest.mark.parametrize("size", [32, 64])
def test_parameter_counts(name, params, stats, size):
    model = create_model(name, norm_rule=torch_rule())
    shapes = jax.eval_shape(lambda key: model.init(key, jnp.zeros((2, size, size, 3)), train=False), jax.random.key(0))
    assert count(shapes["params"]) == params
    assert count(shapes["batch_stats"]) == stats
    for number in (params, stats):
        assert f"{number:,}" in type(model).__doc__


@pytest.mark.parametrize("name", NETWORKS)
def test_forward_matches_torch(torch, x64, rng, name):
    """Logits in training and evaluation, of the lecture's widths over 8, with the same weights. 1e-12: double sums."""
    stages = tuple(tuple(w // 8 for w in widths) for widths in NETWORKS[name])
    model = create_model(name, norm_rule=torch_rule(), num_classes=7, stages=stages, dtype=jnp.dtype("float64"))
    x = rng.normal(size=(5, 32, 32, 3))
    variables = model.init(jax.random.key(1), jnp.asarray(x), train=False)
    modules, number, channels = [], 0, 3
    for widths in stages:
        for width in widths:
            number += 1
            conv = torch.nn.Conv2d(channels, width, 3, padding=1, bias=False)
            conv.weight.data = torch.tensor(
                np.array(variables["params"][f"conv{number}"]["kernel"]).transpose(3, 2, 0, 1)
            )
            modules += [conv, torch.nn.BatchNorm2d(width), torch.nn.ReLU()]
            channels = width
        modules.append(torch.nn.MaxPool2d(2))
    linear = torch.nn.Linear(channels, 7)
    linear.weight.data = torch.tensor(np.array(variables["params"]["linear"]["kernel"]).T)
    linear.bias.data = torch.tensor(np.array(variables["params"]["linear"]["bias"]))
    network = torch.nn.Sequential(*modules, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), linear).double()
    tx = torch.tensor(x.transpose(0, 3, 1, 2))
    logits, new = model.apply(variables, jnp.asarray(x), train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(logits, network(tx).detach().numpy(), rtol=0, atol=1e-12)
    network.eval()
    logits = model.apply({**variables, **new}, jnp.asarray(x), train=False)
    np.testing.assert_allclose(logits, network(tx).detach().numpy(), rtol=0, atol=1e-12)


def test_masked_rows_change_nothing(rng):
    model = create_model("cnn6", norm_rule=torch_rule(), stages=((4, 4), (8, 8), (8, 8)))
    x = jnp.asarray(rng.normal(size=(5, 32, 32, 3)), jnp.float32)
    variables = model.init(jax.random.key(0), x, train=False)
    plain, new = model.apply(variables, x, train=True, mutable=["batch_stats"])
    padded = jnp.concatenate([x, 100 * x[:3]])
    masked, new_masked = model.apply(variables, padded, train=True, mask=jnp.arange(8) < 5, mutable=["batch_stats"])
    np.testing.assert_allclose(masked[:5], plain, rtol=0, atol=2e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), new_masked, new)


def test_intermediates_are_those_of_the_layer_whose_name_they_bear(rng):
    """A norm's is BatchNorm's output: mean 0, deviation 1, half of it negative; before ReLU and pool."""
    model = create_model("cnn6", norm_rule=torch_rule(), stages=((4, 4), (8, 8), (8, 8)))
    x = jnp.asarray(rng.normal(size=(20, 32, 32, 3)), jnp.float32)
    variables = model.init(jax.random.key(0), x, train=False)
    _, seen = model.apply(
        variables, x, train=True, mutable=["batch_stats", "intermediates"], capture_intermediates=True
    )
    outputs = {name: found["__call__"][0] for name, found in seen["intermediates"].items() if name != "__call__"}
    sizes = {1: 32, 2: 32, 3: 16, 4: 16, 5: 8, 6: 8}
    for number, size in sizes.items():
        y, convolved = outputs[f"norm{number}"], outputs[f"conv{number}"]
        assert y.shape[1:3] == (size, size)
        np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-5)
        np.testing.assert_allclose(y.std((0, 1, 2)), 1, atol=2e-3)
        expected, _ = batch_norm(convolved, None, None, init_stats(y.shape[-1]), rule=torch_rule(), train=True)
        np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_types(x64, dtype):
    model = create_model("cnn6", norm_rule=torch_rule(), stages=((4, 4), (4, 4), (4, 4)), dtype=jnp.dtype(dtype))
    x = jnp.ones((2, 32, 32, 3), jnp.float32)
    variables = model.init(jax.random.key(0), x, train=False)
    kept = "float64" if dtype == "float64" else "float32"
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(variables)} == {kept}
    assert model.apply(variables, x, train=False).dtype == kept


def test_flax_initialisation_by_name():
    model = create_model("cnn6", norm_rule=torch_rule(), init_name="flax")
    params = model.init(jax.random.key(0), jnp.zeros((2, 32, 32, 3)), train=False)["params"]
    assert not params["linear"]["bias"].any()
    assert params["conv4"]["kernel"].std() == pytest.approx((9 * 128) ** -0.5, rel=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "cnn7"}, r"model.name must be one of \('cnn6', 'cnn10'\), got 'cnn7'"),
        ({"init_name": "zeros"}, r"model.init must be one of \('torch', 'flax'\), got 'zeros'"),
        ({"stages": ((4,), (4,))}, r"model.stages must be \(\) or widths laid out like cnn6's"),
    ],
)
def test_wrong_names_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        create_model(**{"name": "cnn6", "norm_rule": torch_rule(), **options})
