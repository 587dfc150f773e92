"""Lockstep runs that agree, and faults planted in our side that must be found and named."""

import functools
import importlib
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import REAL_DATA, ROOT, run_command
from small_runs import LECTURE

from cifar_jax.data import load_dataset
from cifar_jax.data.dataset import Dataset, Split, take
from cifar_jax.nn import optimizers, schedules
from cifar_jax.nn.batch_norm import BatchNormRule, BatchStats, Moments, normalize, torch_rule, update_stats
from cifar_jax.nn.layers import BatchNorm
from cifar_jax.nn.models import NETWORKS, create_model
from cifar_jax.nn.transforms import Transform
from cifar_jax.runs import build as experiment
from cifar_jax.runs import phases, steps
from cifar_jax.runs.state import TrainState
from configs import default

STAGES = ((4, 4), (4,))  # a pool after the second convolution and after the third
STEPS_PER_EPOCH = 3  # 22 images in batches of 8, the last of 6
STEPS = 4


def dataset(rng, *, low=0):
    """Noise of four pixels' width, which survives a resize to 8x8."""
    images = np.kron(rng.integers(low, 256, (22, 8, 8, 3)), np.ones((1, 4, 4, 1), int)).astype(np.uint8)
    labels = rng.integers(0, 5, 22).astype(np.int32)
    return Dataset("shapes", Split(images, labels), Split(images[:2], labels[:2]), tuple("abcde"), (), ())


def tiny(optimizer="sgd", schedule="step", dtype="float64", step_size=2):
    config = default.get_config()
    config.dtype = dtype
    config.data.name, config.data.batch_size, config.data.image_size = "shapes", 8, 8
    config.model.name = "tiny"
    config.train.epochs = step_size + 5
    config.optimizer.name, config.optimizer.lr = optimizer, 0.05 if optimizer == "sgd" else 0.001
    config.optimizer.weight_decay = 0.0005 if optimizer == "sgd" else 0.0
    config.schedule.name, config.schedule.step_size, config.schedule.t_max = schedule, step_size, 4
    return config


@pytest.fixture
def lockstep(torch, monkeypatch):
    """The module, with what saves it time: a network of three layers, and no weights of ours to draw and throw away."""
    monkeypatch.setitem(NETWORKS, "tiny", STAGES)
    monkeypatch.setattr(experiment, "create_state", empty_state)
    from cifar_jax.parity.lockstep import run as lockstep

    return lockstep


def empty_state(model, tx, *, init_key, key, image_size):
    x = jnp.zeros((2, image_size, image_size, 3))
    shapes = jax.eval_shape(lambda: model.init(init_key, x, train=False))
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    params = variables["params"]
    return TrainState(jnp.zeros((), jnp.int32), params, variables["batch_stats"], tx.init(params), key)


@pytest.fixture(scope="module")
def built():
    """Sides by the arguments of `sides`, so that runs of one network share its compiled program."""
    return {}


def sides(lockstep, built, rng, *, optimizer="sgd", schedule="step", dtype="float64", start="torch", step_size=2):
    """Both sides of a small run, compiled once for each choice.

    start: torch's weights; with "ties", one channel's first ReLU sees only zeros and another's first pool only ones;
      with "offset", bright images go through a first convolution that does not mix pixels, so that its mean is large
      beside its deviation (at a border, padding would see to it that it is not).
    """
    from cifar_jax.parity import twin
    from cifar_jax.parity.lockstep import our_side

    jax.config.update("jax_enable_x64", dtype == "float64")
    key = (optimizer, schedule, start, step_size, dtype)
    if key not in built:
        made = lockstep.build(
            tiny(optimizer, schedule, dtype, step_size), dataset(rng, low=250 if start == "offset" else 0)
        )
        arrays = twin.read_arrays(made.theirs().network)
        if start == "ties":
            arrays["norm1.weight"][0] = 0
            arrays["norm2.weight"][1], arrays["norm2.bias"][1] = 0, 1
        if start == "offset":
            arrays["conv1.weight"] *= np.pad([[1]], 1)

        def theirs():
            side = made.theirs()
            twin.load_arrays(side.network, arrays)
            return side

        ours = made.ours._replace(state=our_side.load(made.ours.state, arrays, {}))
        same_network = next((built[k] for k in built if k[-1] == dtype), None)
        if same_network:
            ours = ours._replace(gradients=same_network.ours.gradients, inputs=same_network.ours.inputs)
        built[key] = made._replace(theirs=theirs, ours=ours)
    return built[key]


@pytest.fixture
def double():
    """Whatever a test switches on, the next begins in single precision."""
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture
def quick():
    """Programs that compile in half the time. What is planted here does not depend on optimizations."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


# --- Runs that agree ---


@pytest.mark.parametrize("name", LECTURE)
def test_the_lectures_configs_agree(torch, double, name):
    """Nine configs with narrower networks, on real images where there are any; the second epoch has its own rate."""
    from cifar_jax.parity.lockstep import run as lockstep

    config = importlib.import_module(f"configs.{name}").get_config()
    widths = NETWORKS[config.model.name]
    config.model.stages = tuple(tuple(width // 16 for width in stage) for stage in widths)
    config.dtype, config.data.batch_size, config.train.epochs = "float64", 12, 4
    if REAL_DATA.is_dir():
        config.data.dir = str(REAL_DATA)
    else:
        config.data.name = "shapes"
    if config.schedule.name == "step":
        config.schedule.step_size = 1
    jax.config.update("jax_enable_x64", True)
    images = take(load_dataset(config.data.name, config.data.dir), 30, 2)
    report = lockstep.run(lockstep.build(config, images), steps=5)
    assert report.outside is None, (report.outside, report.record.largest())
    assert [step.images for step in report.record.steps] == [12, 12, 6, 12, 12]
    rates = [step.lr for step in report.record.steps]
    assert (rates[0] == rates[3]) == (config.schedule.name == "constant")


@pytest.mark.parametrize(
    ("optimizer", "schedule", "dtype"),
    [
        ("sgd", "step", "float64"),
        ("adam", "cosine", "float64"),
        ("sgd", "step", "float32"),
        ("adam", "step", "float32"),
    ],
)
def test_agrees(lockstep, built, rng, double, optimizer, schedule, dtype):
    """Over two epochs with ragged last batches, within the stated bounds."""
    report = lockstep.run(sides(lockstep, built, rng, optimizer=optimizer, schedule=schedule, dtype=dtype), steps=7)
    assert report.outside is None, (report.outside, report.record.largest())
    assert [step.images for step in report.record.steps] == [8, 8, 6, 8, 8, 6, 8]
    compared = {q for step in report.record.steps for q, tensors in step.errors.items() if tensors}
    assert compared == set(report.record.tolerance) - {"weights"}


def test_it_is_the_compiled_step_that_is_compared(lockstep, built, rng, double):
    """Three of train_step's updates from the same start. 1e-12: it is fused otherwise than its pieces."""
    from cifar_jax.parity.lockstep import our_side

    made = sides(lockstep, built, rng)
    x = experiment.build(tiny(), dataset(rng))
    state = made.ours.state
    for batch in made.ours.batches(0):
        state, _ = our_side.take_step(made.ours, state, batch)
    copy = jax.tree.map(jnp.copy, made.ours.state)
    for batch in made.ours.batches(0):
        copy, _ = steps.train_step(
            copy, made.ours.images, made.ours.labels, batch, model=x.model, tx=x.tx,
            transform=x.transform,
        )  # fmt: skip
    same = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-12)
    jax.tree.map(same, (copy.params, copy.batch_stats), (state.params, state.batch_stats))
    assert int(copy.step) == 3


# --- Faults: each exchanges one part of our side ---


def model(dtype="float64", **options):
    options = {"norm_rule": torch_rule(), "num_classes": 5, "dtype": jnp.dtype(dtype), **options}
    return create_model("tiny", **options)


def network(module):
    return {"gradients": functools.partial(steps.loss_and_grads, model=module)}


class OnePassNorm(nn.Module):
    """E[x^2] - E[x]^2."""

    @nn.compact
    def __call__(self, x, *, train, mask):
        mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1:])
        var = self.variable("batch_stats", "var", jnp.ones, x.shape[-1:])
        scale, bias = (self.param(name, nn.initializers.zeros, x.shape[-1:]) for name in ("scale", "bias"))
        rows = mask.reshape(-1, 1, 1, 1)
        count = jnp.sum(mask) * x[0, ..., 0].size * jnp.ones((), x.dtype)
        m, s = (jnp.sum(jnp.where(rows, x**power, 0), (0, 1, 2)) / count for power in (1, 2))
        v = jnp.maximum(s - m**2, 0)
        mean.value, var.value = update_stats(BatchStats(mean.value, var.value), Moments(m, v, count), rule=torch_rule())
        return normalize(x, m, v, scale, bias, epsilon=1e-5)


class OtherCNN(nn.Module):
    """The network with its ReLU, pool or norm exchanged."""

    relu: object = nn.relu
    pool: object = functools.partial(nn.max_pool, window_shape=(2, 2), strides=(2, 2))
    norm: object = functools.partial(BatchNorm, torch_rule())
    dtype: object = jnp.float64

    @nn.compact
    def __call__(self, x, *, train, mask=None):
        for number in range(1, 4):
            x = nn.Conv(4, (3, 3), padding=1, use_bias=False, param_dtype=self.dtype, name=f"conv{number}")(x)
            x = self.relu(self.norm(name=f"norm{number}")(x, train=train, mask=mask))
            x = x if number == 1 else self.pool(x)
        return nn.Dense(5, param_dtype=self.dtype, name="linear")(jnp.mean(x, (1, 2)))


class UnmaskedCNN(nn.Module):
    inner: nn.Module

    def apply(self, variables, x, *, train, mask, mutable):
        return self.inner.apply(variables, x, train=train, mutable=mutable)


def sharing_pool(x):
    """Its gradient goes in equal parts to all of the greatest."""
    batch, height, width, channels = x.shape
    return jnp.max(x.reshape(batch, height // 2, 2, width // 2, 2, channels), (2, 4))


def rates_by_step(schedule, *, momentum=0.9, weight_decay=0.0005):
    return {"schedule": schedule, "tx": optimizers.sgd(schedule, momentum=momentum, weight_decay=weight_decay)}


def host_rates(*, name="step", calls_per_epoch=1, change=lambda rates: rates):
    rates = schedules.learning_rates(
        name, lr=0.05, epochs=7, step_size=2, gamma=0.5, t_max=4, calls_per_epoch=calls_per_epoch
    )
    return schedules.by_step(change(rates), steps_per_epoch=STEPS_PER_EPOCH)


def chain(ours, *links):
    return {"tx": optax.chain(*links, optax.scale_by_learning_rate(ours.schedule))}


def inputs(transform):
    """`transform(images, real)` in place of ours; the flips are as usual, before it."""

    def other(state, images, labels, batch, *, resize):
        flips = jax.random.bernoulli(jax.random.fold_in(state.key, state.step), 0.5, batch.indices.shape)
        x = images[batch.indices]
        return transform(jnp.where(flips.reshape(-1, 1, 1, 1), x[:, :, ::-1], x)), labels[batch.indices]

    return {"inputs": functools.partial(other, resize=None)}


def float_resize(x):
    x = jax.image.resize(x.astype(jnp.float64), (len(x), 8, 8, 3), "bicubic")
    return (x / 255 - 0.5) / 0.5


def weights(ours, change):
    return {"state": ours.state.replace(params=change(ours.state.params))}


def drawn(ours, **options):
    x = jnp.zeros((2, 8, 8, 3))
    return weights(
        ours, lambda _: jax.jit(lambda k: model(**options).init(k, x, train=False))(jax.random.key(5))["params"]
    )


def without_mask(ours):
    return {"batches": lambda epoch: [steps.Batch(batch.indices, None) for batch in ours.batches(epoch)]}


def in_batches(ours, sampler="shuffle", seed=None):
    def batches(epoch):
        order = np.concatenate([b.indices[b.mask] for b in ours.batches(epoch)])
        order = order if seed is None else np.random.default_rng(seed).permutation(order)
        return phases.unstack(steps.split_epoch(order, None, batch_size=8, sampler=sampler))

    return {"batches": batches}


def float32_stats(ours):
    def gradients(params, batch_stats, x, labels, mask):
        new = ours.gradients(params, batch_stats, x, labels, mask)
        return new._replace(batch_stats=jax.tree.map(lambda a: a.astype(jnp.float32), new.batch_stats))

    return {"gradients": gradients}


FAULTS = {
    "BN1 kept the other way": ({}, lambda o: network(model(norm_rule=BatchNormRule(0.1, True)))),
    "BN2 biased": ({}, lambda o: network(model(norm_rule=BatchNormRule(0.9, False)))),
    "BN3 one pass": (
        {"dtype": "float32", "start": "offset"}, lambda o: network(OtherCNN(norm=OnePassNorm, dtype=jnp.float32))
    ),
    "BN4 1e-3": ({}, lambda o: network(model(epsilon=1e-3))),
    "BN6 float32": ({}, float32_stats),
    "BN7 padded rows": ({}, lambda o: network(UnmaskedCNN(model()))),
    "C1 kernels on their side": (
        {}, lambda o: weights(o, lambda p: {**p, "conv3": {"kernel": p["conv3"]["kernel"].swapaxes(0, 1)}})
    ),
    "L3 flax": ({}, lambda o: drawn(o, init_name="flax")),
    "R1 other weights": ({}, drawn),
    "R1 other order": ({}, lambda o: in_batches(o, seed=1)),
    "L4 stride 1": (
        {}, lambda o: network(OtherCNN(pool=functools.partial(nn.max_pool, window_shape=(2, 2), padding="SAME")))
    ),
    "L4 ties": ({"start": "ties"}, lambda o: network(OtherCNN(pool=sharing_pool))),
    "L5 half": ({"start": "ties"}, lambda o: network(OtherCNN(relu=lambda x: jnp.maximum(x, 0)))),
    "P1 bfloat16": ({"dtype": "float32"}, lambda o: network(model("bfloat16"))),
    "O1 none": ({}, lambda o: chain(o, optax.trace(0.9))),
    "O1 after momentum": ({}, lambda o: chain(o, optax.trace(0.9), optax.add_decayed_weights(0.0005))),
    "O1 unscaled": (
        {}, lambda o: {"tx": optax.chain(chain(o, optax.trace(0.9))["tx"], optax.add_decayed_weights(-0.0005))}
    ),
    "O2 float32": ({"optimizer": "adam", "dtype": "float32"}, lambda o: {"tx": optax.adam(o.schedule)}),
    "O3 adamw": ({"optimizer": "adam"}, lambda o: {"tx": optax.adamw(o.schedule)}),
    # 41 epochs of 3 steps: one of the lengths at which compiled code divides to just below a whole number.
    "S1 staircase": (
        {"dtype": "float32", "step_size": 41},
        lambda o: rates_by_step(optax.exponential_decay(0.05, 41 * STEPS_PER_EPOCH, 0.5, staircase=True)),
    ),
    "S2 by step": (
        {"schedule": "cosine"}, lambda o: rates_by_step(optax.cosine_decay_schedule(0.05, 4 * STEPS_PER_EPOCH))
    ),
    "S2 stays at 0": (
        {"schedule": "cosine"},
        lambda o: rates_by_step(host_rates(name="cosine", change=lambda r: np.where(np.arange(7) > 4, 0, r))),
    ),
    "S3 step, twice": ({}, lambda o: rates_by_step(host_rates(calls_per_epoch=2))),
    "S3 cosine, twice": (
        {"schedule": "cosine"}, lambda o: rates_by_step(host_rates(name="cosine", calls_per_epoch=2))
    ),
    "S4 float32": (
        {"schedule": "cosine"},
        lambda o: rates_by_step(host_rates(name="cosine", change=lambda r: r.astype(np.float32))),
    ),
    "M1 mean of means": (
        {}, lambda o: {"epoch_loss": lambda seen: float(np.mean([m.loss_sum / m.count for m in seen]))}
    ),
    "D1 float resize": ({}, lambda o: inputs(float_resize)),
    "D2 unmasked": ({}, without_mask),
    "D3 dropped": ({}, lambda o: in_batches(o, "whole_batches")),
    "D4 first half": (
        {}, lambda o: {
            "inputs": functools.partial(
                steps.train_input, transform=Transform(8, "flip_first_half"), dtype=jnp.float64
            )
        }
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_and_named(lockstep, built, rng, double, quick, fault):
    setting, plant = FAULTS[fault]
    made = sides(lockstep, built, rng, **setting)
    ours = made.ours._replace(**plant(made.ours))
    if ours.tx is not made.ours.tx:
        ours = ours._replace(state=ours.state.replace(opt_state=ours.tx.init(ours.state.params)))
    report = lockstep.run(made._replace(ours=ours), steps=STEPS)
    assert report.outside is not None
    named = [suggestion.row for suggestion in report.suggestions[:3]]
    assert fault.split()[0] in named, (report.outside, report.suggestions)


def test_the_sizes_of_errors(lockstep):
    from cifar_jax.parity.lockstep.record import difference

    assert difference([1.0, 200.0], [1.0, 200.5]) == 0.5  # in itself: the larger figure where numbers are large
    assert difference([1e-6, 0.0], [2e-6, 0.0]) == 0.5  # of the largest: the larger figure where they are small
    assert difference([1e-6], [0.0]) == 1e-6
    assert difference([1.0, 2.0], [1.0]) == difference([np.nan], [1.0]) == np.inf
    assert difference([np.nan, 1.0], [np.nan, 1.0]) == 0.0


# --- The command ---


@pytest.fixture
def command(lockstep, built, rng, monkeypatch, tmp_path, double):
    """Runs it on the small sides, after a plant; returns its exit code."""

    def run(*argv, plant=lambda ours: {}):
        made = sides(lockstep, built, rng, dtype="float32")
        made = made._replace(ours=made.ours._replace(**plant(made.ours)))
        monkeypatch.setattr(lockstep, "build", lambda config, dataset: made)
        monkeypatch.setattr("cifar_jax.data.load_dataset", lambda name, data_dir: dataset(rng))
        return run_command("lockstep", "--steps=4", f"--png={tmp_path}/a.png", f"--json={tmp_path}/a/b.json", *argv)

    monkeypatch.chdir(ROOT)
    return run


CONFIG = "--config=configs/cnn6_step.py"


def test_the_command_when_all_is_well(command, capsys, tmp_path):
    assert command(CONFIG) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "cnn6_step: PyTorch against JAX in float32, each step from torch's state"
    assert lines[1] == "cnn6, the lecture's widths; 4 steps on 22 images of cifar100 at 32x32, batch 200"
    assert [line.split()[:3] for line in lines if line[:4].strip().isdigit()] == [
        ["1", "1", "8"], ["2", "1", "8"], ["3", "1", "6"], ["4", "2", "8"],
    ]  # fmt: skip
    assert "Everything is inside its tolerance." in lines
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    saved = json.loads((tmp_path / "a" / "b.json").read_text())
    assert saved["outside"] is None
    assert len(saved["steps"]) == 4
    assert 0 < saved["largest"]["gradient"] < saved["tolerance"]["gradient"]
    assert saved["origin"]["versions"]["torch"]
    assert saved["origin"]["command"].startswith("python ")


def test_the_command_when_they_part(command, capsys, tmp_path):
    assert command(CONFIG, plant=lambda o: rates_by_step(host_rates(calls_per_epoch=2))) == 1
    text = capsys.readouterr().out
    assert "First outside: step 4, epoch 2: lr lr, error 5.0e-01, tolerance 1.2e-07\n" in text
    assert "could explain it:\n  1. S3: the scheduler is stepped twice" in text
    assert json.loads((tmp_path / "a" / "b.json").read_text())["suggestions"][0]["row"] == "S3"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--config must name a config, such as --config=configs/cnn6_adam.py, got nothing."),
        (["--config=nothing.py"], "--config must name a config file or one of cifar10_scratch, "),
        ([CONFIG, "--config.dtype=bfloat16"], "dtype must be float32 or float64 for a comparison with PyTorch, got"),
        ([CONFIG, "--config.modle.name=cnn6"], "modle.name is not a config key"),
        ([CONFIG, "--config.norm.epsilon=-1."], "norm.epsilon must be a finite number above 0, got -1.0."),
        ([CONFIG, "--config.data.limit_train=23"], "data.limit_train must be at most 22, the number of images"),
        ([CONFIG, "--steps=0"], "--steps must be an integer of at least 1, got '0'."),
        ([CONFIG, "more"], "python -m cifar_jax lockstep does not take more; "),
    ],
)
def test_wrong_input_is_one_sentence(command, capsys, argv, message):
    assert command(*argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("Error: ")
    assert message in error
    assert error.count("\n") == 1
