"""The lecture's side against torch's own layers, and against our network with the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax.nn.batch_norm import RULES
from cifar_jax.nn.models import NETWORKS, create_model
from cifar_jax.parity.state_dict import from_state_dict, to_state_dict


@pytest.fixture
def twin(torch):
    from cifar_jax.parity import twin

    return twin


@pytest.mark.parametrize("momentum", [0.1, 0.9])
def test_the_lectures_batch_norm(torch, twin, rng, momentum):
    """torch's layer with the weights of old and new exchanged, but for the variance, which is NumPy's biased one."""
    ours = twin.BatchNorm2d(3, momentum=momentum).double()
    theirs = torch.nn.BatchNorm2d(3, momentum=1 - momentum).double()
    with torch.no_grad():
        for layer in (ours, theirs):
            layer.weight.copy_(torch.tensor([1.5, -2.0, 0.5]))
            layer.bias.copy_(torch.tensor([0.1, 0.2, 0.3]))
    var = np.ones(3)
    close = {"rtol": 0, "atol": 1e-11}  # rounding of sums of 120 doubles, cubed
    for _ in range(3):
        x = rng.normal(3, 2, (4, 3, 5, 6))
        var = momentum * var + (1 - momentum) * x.var((0, 2, 3))
        a, b = (torch.tensor(x, requires_grad=True) for _ in range(2))
        y, expected = ours(a), theirs(b)
        torch.testing.assert_close(y, expected, **close)
        (y**3).sum().backward()
        (expected**3).sum().backward()
        torch.testing.assert_close(a.grad, b.grad, **close)
        torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, **close)
        torch.testing.assert_close(ours.running_mean, theirs.running_mean, **close)
        torch.testing.assert_close(ours.running_var, torch.tensor(var), **close)
        assert (ours.running_var - theirs.running_var).abs().max() > 1e-3  # theirs enters as 120/119 of itself
    assert int(ours.num_batches_tracked) == int(theirs.num_batches_tracked) == 3
    ours.eval()
    x = torch.tensor(rng.normal(3, 2, (4, 3, 5, 6)))
    per_channel = [v.reshape(1, 3, 1, 1) for v in (ours.running_mean, ours.running_var, ours.weight, ours.bias)]
    expected = (x - per_channel[0]) / (per_channel[1] + 1e-5) ** 0.5 * per_channel[2] + per_channel[3]
    torch.testing.assert_close(ours(x), expected, **close)
    assert not twin.BatchNorm2d(3, affine=False).state_dict().keys() & {"weight", "bias"}


def test_its_modules_draw_torchs_initial_weights(torch, twin):
    """In the order conv1, norm1, conv2, ..., linear, which decides what torch's generator gives to whom."""
    stages = ((4, 5), (6, 7), (8, 9))
    torch.manual_seed(3)
    network = twin.create_twin("cnn6", num_classes=11, stages=stages)
    torch.manual_seed(3)
    widths = [3, 4, 5, 6, 7, 8, 9]
    for number in range(1, 7):
        conv = torch.nn.Conv2d(widths[number - 1], widths[number], 3, padding=1, bias=False)
        assert torch.equal(getattr(network, f"conv{number}").weight, conv.weight)
    linear = torch.nn.Linear(9, 11)
    assert torch.equal(network.linear.weight, linear.weight)
    assert torch.equal(network.linear.bias, linear.bias)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("rule", RULES)
def test_the_networks_are_twins(torch, twin, x64, rng, name, rule):
    """Logits in training, then in evaluation by the statistics that it left. 1e-12: sums of doubles."""
    stages = tuple(tuple(w // 16 for w in widths) for widths in NETWORKS[name])
    options = {"num_classes": 7, "stages": stages, "epsilon": 1e-4}
    network = twin.create_twin(name, norm_rule=rule, **options).double()
    model = create_model(name, norm_rule=RULES[rule](), dtype=jnp.dtype("float64"), **options)
    x = rng.normal(size=(5, 32, 32, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.asarray(x), train=False))
    arrays = from_state_dict(twin.read_arrays(network), shapes["params"], shapes["batch_stats"])
    params, stats, _ = jax.device_put(arrays)
    tx = torch.tensor(x.transpose(0, 3, 1, 2))
    logits, new = model.apply(
        {"params": params, "batch_stats": stats}, jnp.asarray(x), train=True, mutable=["batch_stats"]
    )
    np.testing.assert_allclose(logits, network(tx).detach().numpy(), rtol=0, atol=1e-12)
    for key, array in to_state_dict(params, new["batch_stats"], updates=1).items():
        np.testing.assert_allclose(array, network.state_dict()[key].numpy(), rtol=0, atol=1e-12, err_msg=key)
    network.eval()
    logits = model.apply({"params": params, **new}, jnp.asarray(x), train=False)
    np.testing.assert_allclose(logits, network(tx).detach().numpy(), rtol=0, atol=1e-12)


def test_loading_and_reading_are_copies(torch, twin):
    first, second = (twin.create_twin("cnn6", stages=((2, 2), (2, 2), (2, 2))) for _ in range(2))
    arrays = twin.read_arrays(first)
    twin.load_arrays(second, arrays)
    with torch.no_grad():
        first.conv1.weight.zero_()
    assert arrays["conv1.weight"].any()
    assert all(np.array_equal(array, second.state_dict()[key].numpy()) for key, array in arrays.items())


def test_optimizers_and_schedulers_are_torchs_own(torch, twin):
    parameters = [torch.nn.Parameter(torch.ones(2))]
    sgd = twin.create_optimizer("sgd", parameters, lr=0.4, momentum=0.9, weight_decay=0.1)
    adam = twin.create_optimizer("adam", parameters, lr=0.1, b1=0.8, b2=0.99, eps=1e-7, weight_decay=0.2)
    assert type(sgd) is torch.optim.SGD
    assert (sgd.defaults["momentum"], sgd.defaults["weight_decay"]) == (0.9, 0.1)
    assert type(adam) is torch.optim.Adam
    assert [adam.defaults[key] for key in ("betas", "eps", "weight_decay")] == [(0.8, 0.99), 1e-7, 0.2]
    for name, kind in (("step", "StepLR"), ("cosine", "CosineAnnealingLR")):
        assert type(twin.create_scheduler(name, sgd, t_max=3)).__name__ == kind
    constant = twin.create_scheduler("constant", adam)
    adam.step()
    constant.step()
    assert adam.param_groups[0]["lr"] == 0.1
