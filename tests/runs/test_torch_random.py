"""PyTorch's own generator, modules and DataLoader are the oracle: everything must be equal, bit for bit."""

import functools
import hashlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from small_runs import saved, stop_in_epoch, timeless

from cifar_jax.devices.interrupt import Interrupted
from cifar_jax.nn.batch_norm import torch_rule
from cifar_jax.nn.models import NETWORKS, create_model
from cifar_jax.runs import train
from cifar_jax.runs.build import build
from cifar_jax.runs.torch_random import Epochs, Generator, count_draws, draw_params

SEEDS = (0, 1, 1234, 2**31 - 1)


@pytest.fixture
def generators(torch):
    """A seed's generator in PyTorch and here."""
    return lambda seed: (torch.Generator().manual_seed(seed), Generator(seed))


@pytest.mark.parametrize("seed", [*SEEDS, 2**32 + 5, 2**63 - 1])
def test_numbers_of_every_kind_one_after_the_other(torch, generators, seed):
    theirs, ours = generators(seed)
    for n in (1, 15, 16, 17, 1000):
        np.testing.assert_array_equal(ours.rand(n), torch.rand(n, generator=theirs).numpy())
        np.testing.assert_array_equal(ours.rand(3), [torch.rand(1, generator=theirs).item() for _ in range(3)])
        double = torch.rand(n, generator=theirs, dtype=torch.float64).numpy()
        np.testing.assert_array_equal(ours.rand_double(n), double)
        assert ours.integer() == torch.empty((), dtype=torch.int64).random_(generator=theirs).item()
        np.testing.assert_array_equal(ours.permutation(n), torch.randperm(n, generator=theirs).numpy())
        for bound in (0.05, 1 / 3, 7.0):
            drawn = torch.empty(n).uniform_(-bound, bound, generator=theirs).numpy()
            np.testing.assert_array_equal(ours.uniform(n, bound), drawn)
        ours.skip(n)
        torch.rand(n, generator=theirs)


def test_rounding_twice_is_another_function(torch, generators):
    """The naive scaling misses, so that the test above can fail."""
    theirs, ours = generators(0)
    drawn = torch.empty(1000).uniform_(-0.05, 0.05, generator=theirs).numpy()
    low, high = np.float32(-0.05), np.float32(0.05)
    assert (ours.rand(1000) * (high - low) + low != drawn).mean() > 0.2


@pytest.mark.parametrize("n", [0, 1, 2, 199, 50_000, 70_000])
def test_permutations_of_every_size(torch, generators, n):
    theirs, ours = generators(n)
    np.testing.assert_array_equal(ours.permutation(n), torch.randperm(n, generator=theirs).numpy())
    np.testing.assert_array_equal(ours.rand(1), torch.rand(1, generator=theirs).numpy())


def test_a_permutation_that_pytorch_draws_otherwise_is_refused():
    with pytest.raises(ValueError, match="n must be below 214748364, .* got 300000000"):
        Generator(0).permutation(300_000_000)


def initial_params(name, dtype="float32", num_classes=100):
    model = create_model(name, norm_rule=torch_rule(), num_classes=num_classes, dtype=jnp.dtype(dtype))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((2, 32, 32, 3)), train=False)["params"])
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def build_in_torch(torch, name):
    """The lecture's network; its weights by our names."""
    weights, modules, inputs = {}, [], 3
    for stage in NETWORKS[name]:
        for width in stage:
            conv = torch.nn.Conv2d(inputs, width, 3, padding=1, bias=False)
            weights[f"conv{len(weights) + 1}"] = conv.weight
            modules += [conv, torch.nn.BatchNorm2d(width), torch.nn.ReLU()]
            inputs = width
        modules.append(torch.nn.MaxPool2d(2))
    linear = torch.nn.Linear(inputs, 100)
    torch.nn.Sequential(*modules, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), linear)
    return {name: weight.detach().numpy() for name, weight in weights.items()}, linear


@pytest.mark.parametrize("seed", SEEDS[:3])
@pytest.mark.parametrize("name", NETWORKS)
def test_initial_weights_at_full_width(torch, name, seed):
    params = initial_params(name)
    drawn = draw_params(seed, params)
    torch.manual_seed(seed)
    convolutions, linear = build_in_torch(torch, name)
    for layer, weight in convolutions.items():
        np.testing.assert_array_equal(drawn[layer]["kernel"], weight.transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(drawn["linear"]["kernel"], linear.weight.detach().numpy().T)
    np.testing.assert_array_equal(drawn["linear"]["bias"], linear.bias.detach().numpy())
    assert set(drawn) == set(params)
    after = Generator(seed)
    after.skip(count_draws(params))
    np.testing.assert_array_equal(after.rand(1), torch.rand(1).numpy())


def test_weights_in_double_precision_are_the_same_numbers(x64):
    double, single = (draw_params(0, initial_params("cnn6", dtype)) for dtype in ("float64", "float32"))
    for name in ("conv1", "conv6", "linear"):
        assert double[name]["kernel"].dtype == np.float64
        np.testing.assert_array_equal(double[name]["kernel"], single[name]["kernel"])


def run_in_torch(torch, n, n_test, batch_size, flips, draws_before):
    """The lecture's loaders, with torchvision's flip of a Pillow image: each epoch's order and flipped images."""
    marked = Image.fromarray(np.array([[0, 255]], np.uint8))

    def transform(image):
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flips and torch.rand(1) < 0.5 else image

    class Images(torch.utils.data.Dataset):
        def __init__(self, size, transform):
            self.size, self.transform = size, transform

        def __len__(self):
            return self.size

        def __getitem__(self, index):
            return index, self.transform(marked).getpixel((0, 0)) == 255

    torch.rand(draws_before)
    loader = functools.partial(torch.utils.data.DataLoader, batch_size=batch_size, drop_last=False, num_workers=0)
    loaders = {"train": loader(Images(n, transform), shuffle=True), "test": loader(Images(n_test, lambda image: image))}
    while True:
        for phase in ("train", "test"):
            seen = [torch.stack(batch) for batch in loaders[phase]]
            if phase == "train":
                order, flipped = torch.cat(seen, dim=1).numpy()
                yield order, flipped.astype(bool)


@pytest.mark.parametrize(
    ("n", "n_test", "batch_size", "flips"),
    [(1, 1, 200, True), (70, 25, 200, True), (200, 9, 200, True), (450, 210, 200, True), (450, 210, 200, False)],
)
@pytest.mark.parametrize("seed", SEEDS)
def test_orders_and_flips_of_every_epoch(torch, seed, n, n_test, batch_size, flips):
    torch.manual_seed(seed)
    program = run_in_torch(torch, n, n_test, batch_size, flips, draws_before=13)
    epochs = [next(program) for _ in range(4)]
    ours = Epochs(seed, n, flips=flips, draws_before=13)
    for epoch in (3, 0, 1, 2):  # by position: in any order
        order, flipped = ours.draw(epoch)
        np.testing.assert_array_equal(order, epochs[epoch][0])
        if flips:
            np.testing.assert_array_equal(flipped, epochs[epoch][1])
        else:
            assert flipped is None
            assert not epochs[epoch][1].any()


def digest(*arrays):
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()[:16]


def recorded(seed, name):
    """Digests of the weights in PyTorch's layout, and of the orders and flips of epochs 0 and 29 of 50,000 images."""
    params = initial_params(name)
    drawn = draw_params(seed, params)
    names = [f"conv{i + 1}" for i in range(sum(map(len, NETWORKS[name])))]
    weights = [drawn[name]["kernel"].transpose(3, 2, 0, 1) for name in names]
    epochs = Epochs(seed, 50_000, flips=True, draws_before=count_draws(params))
    return (
        digest(*weights, drawn["linear"]["kernel"].T, drawn["linear"]["bias"]),
        *(digest(order.astype(np.int64), flipped) for order, flipped in map(epochs.draw, (0, 29))),
    )


RECORDED = {
    (0, "cnn6"): ("7bb0dd1052195563", "2bb525ceb7834d14", "386c5d9dfa2e46aa"),
    (1, "cnn6"): ("82d5cf3eb0026be3", "f20685dca2b7aca5", "01539f5e33cfd34b"),
    (0, "cnn10"): ("0a87ce35ace01e2c", "99ecc426ae5ef521", "3830775e61990749"),
    (2**31 - 1, "cnn10"): ("ffa2b54d6c04fe9e", "153c914a66471298", "4ff1c128b533c41c"),
}


@pytest.mark.parametrize(("seed", "name"), RECORDED)
def test_digests_recorded_from_pytorch(seed, name):
    """What torch 2.13 drew on a processor with AVX2, for machines that lack it."""
    assert recorded(seed, name) == RECORDED[seed, name]


def test_thirty_epochs_cost_little():
    """A start looks for its epoch from the seed on: past CNN10's weights and 29 epochs."""
    start = time.perf_counter()
    Epochs(0, 50_000, flips=True, draws_before=7_683_876).draw(29)
    assert time.perf_counter() - start < 2  # 0.05 s where nothing else runs


def test_a_run_starts_from_the_drawn_weights_and_resumes_bit_for_bit(dataset, config, tmp_path):
    config.rng, config.seed, config.optimizer.name = "torch", 7, "sgd"
    experiment = build(config, dataset)
    params = jax.device_get(experiment.state.params)
    jax.tree.map(np.testing.assert_array_equal, params, draw_params(7, params))
    order, flips = experiment.draw_epoch(2)
    expected = Epochs(7, 70, flips=True, draws_before=count_draws(params)).draw(2)
    np.testing.assert_array_equal((order, flips), expected)
    whole = train.train_and_evaluate(config, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train.train_and_evaluate(config, tmp_path / "parts", check_stop=stop_in_epoch(3, tmp_path / "parts"))
    parts = train.train_and_evaluate(config, tmp_path / "parts")
    assert timeless(parts.history) == timeless(whole.history)
    (state, _), (other, _) = (saved(tmp_path / name, experiment.state) for name in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, state, other)
