"""Rows BN: BatchNorm's output, its running averages, and where they live."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch

from cifar_jax.nn import batch_norm as core
from cifar_jax.nn import layers
from cifar_jax.parity import twin
from cifar_jax.parity.ledger.layout import nchw, nhwc
from cifar_jax.parity.ledger.page import Picture
from cifar_jax.parity.ledger.row import Measurement, Row, compare, compare_facts

_CHANNELS = 3


def _batches(count: int = 10) -> np.ndarray:
    """Batches of 8 feature maps of 4x4 whose mean moves, as it does while a network learns."""
    rng = np.random.default_rng(0)
    return rng.normal(2, 3, (count, 8, 4, 4, _CHANNELS)) + np.linspace(0, 4, count).reshape(-1, 1, 1, 1, 1)


def _torch_running(layer: torch.nn.Module, batches: np.ndarray) -> np.ndarray:
    """Running mean and variance after each batch, `[batches, 2, channels]`."""
    layer = layer.double().train()
    history = []
    for x in batches:
        layer(nchw(x))
        history.append([layer.running_mean.numpy().copy(), layer.running_var.numpy().copy()])
    return np.array(history)


def _jax_running(module: nn.Module, batches: np.ndarray, **call) -> np.ndarray:
    """The same of a Linen module; `call` is how it is told to train."""
    variables = module.init(jax.random.key(0), jnp.asarray(batches[0]), **call)
    step = jax.jit(lambda variables, x: module.apply(variables, x, mutable=["batch_stats"], **call)[1])
    history = []
    for x in batches:
        variables = {**variables, **step(variables, x)}
        history.append([variables["batch_stats"]["mean"], variables["batch_stats"]["var"]])
    return np.array(history)


def _ours(rule: core.BatchNormRule) -> nn.Module:
    return layers.BatchNorm(rule)


def _flax(**options) -> nn.Module:
    return nn.BatchNorm(use_running_average=False, dtype=jnp.float64, param_dtype=jnp.float64, **options)


def _running(layer: torch.nn.Module, rule: core.BatchNormRule, naive: nn.Module) -> tuple[np.ndarray, ...]:
    with jax.enable_x64(True):
        return (
            _torch_running(layer, _batches()),
            _jax_running(_ours(rule), _batches(), train=True),
            _jax_running(naive, _batches()),
        )


def _torch_rule_sides() -> tuple[np.ndarray, ...]:
    return _running(torch.nn.BatchNorm2d(_CHANNELS), core.torch_rule(0.1), _flax(momentum=0.1))


def _lecture_rule_sides() -> tuple[np.ndarray, ...]:
    return _running(twin.BatchNorm2d(_CHANNELS), core.lecture_rule(), _flax())


def _flax_rule_sides() -> tuple[np.ndarray, ...]:
    return _running(torch.nn.BatchNorm2d(_CHANNELS, momentum=0.01), core.flax_rule(0.99), _flax(momentum=0.01))


def _running_means(sides) -> Measurement:
    # The mean alone: the variance has a difference of its own, BN2.
    return compare(*(side[:, 0] for side in sides))


def _draw_running(sides, title: str, names: tuple[str, str, str]) -> Picture:
    lines = {name: side[:, 0, 0].tolist() for name, side in zip(names, sides, strict=True)}
    lines["the batch's own mean"] = _batches().mean((1, 2, 3))[:, 0].tolist()
    return Picture(title, "step", "running mean, channel 0", list(range(1, 11)), lines)


def _unbiased() -> Measurement:
    """One batch of n = 2 values a channel, kept whole, so that the running variance is that batch's."""
    return compare(*_kept_variance(2))


def _kept_variance(n: int) -> tuple[np.ndarray, ...]:
    x = np.random.default_rng(1).normal(0, 1, (1, n, 1, 1, _CHANNELS))
    with jax.enable_x64(True):
        sides = (
            _torch_running(torch.nn.BatchNorm2d(_CHANNELS, momentum=1.0), x),
            _jax_running(_ours(core.torch_rule(1.0)), x, train=True),
            _jax_running(_flax(momentum=0.0), x),
        )
    return tuple(side[0, 1] / x.var((0, 1, 2, 3)) for side in sides)


def _draw_unbiased() -> Picture:
    sizes = [2, 3, 4, 8, 16, 32]
    sides = np.array([[side[0] for side in _kept_variance(n)] for n in sizes]).T
    names = ("torch: n / (n - 1)", "ours, torch's rule", "naive: Flax")
    return Picture(
        "Running variance over the batch's biased one", "values per channel, n", "ratio", sizes,
        dict(zip(names, sides.tolist(), strict=True)),
    )  # fmt: skip


def _offset_errors(offset: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Outputs in float32 on values of this mean and deviation 1: exact (torch in double), torch, ours, Flax."""
    x = np.random.default_rng(0).normal(offset, 1, (64, 8, 8, 4)).astype(np.float32)
    exact = nhwc(torch.nn.BatchNorm2d(4).double()(nchw(x.astype(np.float64))))
    single = nhwc(torch.nn.BatchNorm2d(4)(nchw(x)))
    ours, _ = jax.jit(lambda x: core.batch_norm(x, None, None, core.init_stats(4), rule=core.torch_rule(), train=True))(
        x
    )
    module = nn.BatchNorm(use_running_average=False)
    variables = module.init(jax.random.key(0), x)
    naive, _ = jax.jit(lambda x: module.apply(variables, x, mutable=["batch_stats"]))(x)
    return exact, single, np.asarray(ours), np.asarray(naive)


def _cancellation() -> Measurement:
    exact, single, ours, naive = _offset_errors(1000.0)
    return compare(exact, ours, naive, note=f"torch in float32 is itself off by {np.abs(single - exact).max():.0e}")


def _draw_cancellation() -> Picture:
    offsets = [1, 3, 10, 30, 100, 300, 1000, 3000]
    errors = {"torch, float32": [], "ours": [], "naive: Flax": []}
    for offset in offsets:
        exact, *sides = _offset_errors(float(offset))
        for name, side in zip(errors, sides, strict=True):
            errors[name].append(float(np.abs(side - exact).max()))
    return Picture(
        "Error of the output in float32", "mean of the input, in deviations", "largest error", offsets, errors,
        xlog=True, ylog=True,
    )  # fmt: skip


def _outputs(naive: nn.Module) -> Measurement:
    """Training outputs in double on small values, whose variance of 1e-5 makes epsilon count."""
    x = np.random.default_rng(2).normal(0, 3e-3, (8, 4, 4, _CHANNELS))
    with jax.enable_x64(True):
        theirs = nhwc(torch.nn.BatchNorm2d(_CHANNELS).double()(nchw(x)))
        ours = _ours(core.torch_rule())
        variables = ours.init(jax.random.key(0), jnp.asarray(x), train=True)
        y, _ = ours.apply(variables, jnp.asarray(x), train=True, mutable=["batch_stats"])
        y_naive, _ = naive.apply(naive.init(jax.random.key(0), x), x, mutable=["batch_stats"])
        return compare(theirs, y, y_naive)


def _one_value() -> Measurement:
    x = np.ones((1, 1, 1, _CHANNELS), np.float32)

    def outcome(run):
        try:
            return run()
        except ValueError:
            return "raises ValueError"

    def naive():
        module = nn.BatchNorm(use_running_average=False)
        y, new = module.apply(module.init(jax.random.key(0), x), x, mutable=["batch_stats"])
        return f"output {float(y.max()):g}, running variance {float(new['batch_stats']['var'].max()):.2f}"

    def ours():
        module, one = _ours(core.torch_rule()), jnp.asarray(x)
        y, _ = module.apply(module.init(jax.random.key(0), one, train=True), one, train=True, mutable=["batch_stats"])
        return f"output {float(y.max()):g}"

    def theirs():
        return f"output {float(torch.nn.BatchNorm2d(_CHANNELS)(nchw(x)).max()):g}"

    return compare_facts(outcome(theirs), outcome(ours), outcome(naive))


def _types() -> Measurement:
    """Type of the statistics before and after a step of a module in double, and how often a step is traced."""
    x = np.ones((4, 2, 2, _CHANNELS))

    def types(module, **call):
        traces = 0

        @jax.jit
        def step(variables, x):
            nonlocal traces
            traces += 1
            return {**variables, **module.apply(variables, x, mutable=["batch_stats"], **call)[1]}

        variables = module.init(jax.random.key(0), jnp.asarray(x), **call)
        seen = [str(variables["batch_stats"]["mean"].dtype)]
        for _ in range(3):
            variables = step(variables, x)
        seen.append(str(variables["batch_stats"]["mean"].dtype))
        return f"{' then '.join(dict.fromkeys(seen))}, {traces} trace{'s' if traces > 1 else ''}"

    layer = torch.nn.BatchNorm2d(_CHANNELS).double()
    before = str(layer.running_mean.dtype)
    layer(nchw(x))
    assert str(layer.running_mean.dtype) == before
    with jax.enable_x64(True):
        # torch traces nothing; one trace is what a step of constant types takes.
        theirs = f"{before.removeprefix('torch.')}, 1 trace"
        return compare_facts(theirs, types(_ours(core.torch_rule()), train=True), types(_flax()))


def _padding() -> Measurement:
    """80 rows, filled up to 128 with zeros; the outputs of the 80."""
    x = np.random.default_rng(3).normal(2, 3, (80, 4, 4, _CHANNELS)).astype(np.float32)
    padded, mask = jnp.pad(x, ((0, 48), (0, 0), (0, 0), (0, 0))), jnp.arange(128) < 80
    theirs = nhwc(torch.nn.BatchNorm2d(_CHANNELS)(nchw(x)))
    module = _ours(core.torch_rule())
    variables = module.init(jax.random.key(0), padded, train=True)
    ours, _ = module.apply(variables, padded, train=True, mask=mask, mutable=["batch_stats"])
    stock = nn.BatchNorm(use_running_average=False)
    naive, _ = stock.apply(stock.init(jax.random.key(0), padded), padded, mutable=["batch_stats"])
    return compare(theirs, ours[:80], naive[:80])


def _replicas() -> Measurement:
    """A batch of 64, whole and as four replicas of 16."""
    x = np.random.default_rng(4).normal(2, 3, (64, 2, 2, _CHANNELS)).astype(np.float32)
    theirs = nhwc(torch.nn.BatchNorm2d(_CHANNELS)(nchw(x)))
    module, stock = _ours(core.torch_rule()), nn.BatchNorm(use_running_average=False)
    variables = module.init(jax.random.key(0), jnp.asarray(x), train=True)
    ours, _ = jax.jit(lambda x: module.apply(variables, x, train=True, mutable=["batch_stats"]))(x)
    shards = x.reshape(4, 16, 2, 2, _CHANNELS)
    variables = stock.init(jax.random.key(0), shards[0])
    naive = jax.vmap(lambda x: stock.apply(variables, x, mutable=["batch_stats"])[0])(shards)
    return compare(theirs, ours, naive.reshape(x.shape))


def _evaluated(keep: bool, use_running_average: bool) -> Measurement:
    """Outputs in evaluation after ten steps; the naive one drops the new statistics, or never stops training."""
    batches, x = _batches(), np.random.default_rng(5).normal(4, 3, (8, 4, 4, _CHANNELS))
    layer = torch.nn.BatchNorm2d(_CHANNELS).double()
    for batch in batches:
        layer(nchw(batch))
    theirs = nhwc(layer.eval()(nchw(x)))
    with jax.enable_x64(True):
        module = _ours(core.torch_rule())
        variables = module.init(jax.random.key(0), jnp.asarray(x), train=True)
        for batch in batches:
            _, new = module.apply(variables, jnp.asarray(batch), train=True, mutable=["batch_stats"])
            variables = {**variables, **new}
        ours = module.apply(variables, jnp.asarray(x), train=False)
        stock = nn.BatchNorm(momentum=0.9, dtype=jnp.float64, param_dtype=jnp.float64)
        stored = stock.init(jax.random.key(0), x, use_running_average=False)
        for batch in batches:
            _, new = stock.apply(stored, batch, use_running_average=False, mutable=["batch_stats"])
            stored = {**stored, **new} if keep else stored
        naive, _ = stock.apply(stored, x, use_running_average=use_running_average, mutable=["batch_stats"])
        return compare(theirs, ours, naive)


ROWS = (
    Row(
        id="BN1",
        title="Running average, torch's rule",
        compared="running mean over ten batches, momentum=0.1 in both",
        explanation=(
            "PyTorch's momentum is the weight of the new batch, Flax's that of the old average. The same 0.1 makes "
            "PyTorch remember about ten batches and Flax hardly more than the last one. Training does not show it; "
            "evaluation does."
        ),
        wrong="nn.BatchNorm(use_running_average=not train, momentum=0.1)",
        right="BatchNorm(rule=torch_rule(momentum=0.1))",
        tolerance=1e-12,
        reason="sums of 128 doubles, ten times",
        run=lambda: _running_means(_torch_rule_sides()),
        picture=lambda: _draw_running(
            _torch_rule_sides(), "momentum = 0.1 in PyTorch and in Flax", ("torch", "ours", "naive: Flax, 0.1")
        ),
    ),
    Row(
        id="BN1L",
        title="Running average, the lecture's rule",
        compared="running mean and variance over ten batches",
        explanation=(
            "The lecture's own BatchNorm2d keeps 0.1 of the old average and takes 0.9 of the batch, with the biased "
            "variance: Flax's formula with PyTorch's number, so its statistics are 90 % the last batch. Flax's default "
            "of 0.99 is far behind after ten batches."
        ),
        wrong="nn.BatchNorm(use_running_average=not train)  # momentum=0.99",
        right="BatchNorm(rule=lecture_rule(momentum=0.1))",
        tolerance=1e-12,
        reason="sums of 128 doubles, ten times",
        run=lambda: compare(*_lecture_rule_sides()),
        picture=lambda: _draw_running(
            _lecture_rule_sides(),
            "The lecture's rule and Flax's default",
            ("torch: the lecture's class", "ours", "naive: Flax, 0.99"),
        ),
    ),
    Row(
        id="BN1F",
        title="Running average, Flax's rule",
        compared="running mean over ten batches; torch with momentum=0.01",
        explanation=(
            "Flax's default of 0.99 is PyTorch's momentum=0.01. Who copies that 0.01 back into Flax gets statistics "
            "that are 99 % the last batch."
        ),
        wrong="nn.BatchNorm(use_running_average=not train, momentum=0.01)",
        right="BatchNorm(rule=flax_rule(momentum=0.99))",
        tolerance=1e-12,
        reason="sums of 128 doubles, ten times",
        run=lambda: _running_means(_flax_rule_sides()),
    ),
    Row(
        id="BN2",
        title="Running variance",
        compared="running over biased batch variance at n = 2",
        explanation=(
            "Both frameworks normalise by the biased variance, but PyTorch puts n / (n - 1) times it into the running "
            "variance. At the lecture's 200 images of 32x32 that is 1.000005; on the last, smallest feature maps of a "
            "small batch it is not."
        ),
        wrong="ra_var.value = momentum * ra_var.value + (1 - momentum) * var  # inside nn.BatchNorm: var is biased",
        right="torch_rule()  # BatchNormRule(keep=0.9, unbiased=True)",
        tolerance=1e-12,
        reason="rounding of doubles",
        run=_unbiased,
        picture=_draw_unbiased,
    ),
    Row(
        id="BN3",
        title="Variance of a batch with a large mean",
        compared="float32 output at a mean of 1000 deviations; torch in float64",
        explanation=(
            "Flax computes E[x^2] - E[x]^2 in one pass by default. In float32 the two terms cancel where the mean is "
            "large beside the deviation, and the variance is clipped at 0. Two passes, E[(x - E[x])^2], do not cancel."
        ),
        wrong="nn.BatchNorm(use_running_average=False)  # use_fast_variance=True",
        right="var = jnp.mean(jnp.square(x - mean), axes)",
        tolerance=4e-4,
        reason="float32 holds a mean of 1000 to 6e-5",
        run=_cancellation,
        stable=False,
        picture=_draw_cancellation,
    ),
    Row(
        id="BN4",
        title="Epsilon",
        compared="output at a variance of 1e-5, each framework's default",
        explanation="PyTorch and Flax both add 1e-5 to the variance, inside the root. Nothing differs.",
        wrong="nn.BatchNorm(use_running_average=False)  # epsilon=1e-5, as in torch",
        right="BatchNorm(rule)  # epsilon=1e-5",
        tolerance=1e-10,
        reason="doubles, divided by a deviation of 3e-3",
        run=lambda: _outputs(_flax()),
        naive_fails=False,
    ),
    Row(
        id="BN4K",
        title="Epsilon, as Keras has it",
        compared="output at a variance of 1e-5, epsilon 1e-3",
        explanation=(
            "Keras's BatchNormalization and much JAX code that follows it use 1e-3. On small activations that is no "
            "longer small beside the variance."
        ),
        wrong="nn.BatchNorm(use_running_average=False, epsilon=1e-3)",
        right="BatchNorm(rule, epsilon=1e-5)",
        tolerance=1e-10,
        reason="doubles, divided by a deviation of 3e-3",
        run=lambda: _outputs(_flax(epsilon=1e-3)),
    ),
    Row(
        id="BN5",
        title="One value per channel in training",
        compared="what a batch of one 1x1 feature map does",
        explanation=(
            "The variance of one value is 0 and says nothing. PyTorch refuses; Flax gives zeros and lets the running "
            "variance shrink at every step."
        ),
        wrong="nn.BatchNorm(use_running_average=False).apply(variables, x[:1], mutable=['batch_stats'])",
        right="raise ValueError('BatchNorm in training takes more than one value per channel, ...')",
        tolerance=0,
        reason="either it raises or not",
        run=_one_value,
    ),
    Row(
        id="BN6",
        title="Type of the statistics",
        compared="running mean of a module in double, before and after a step",
        explanation=(
            "Flax's statistics start in float32 even when parameters and computation are float64, and change type at "
            "the first update: a compiled step is traced twice, and lax.scan refuses the carry. PyTorch's follow the "
            "module."
        ),
        wrong="nn.BatchNorm(use_running_average=False, dtype=jnp.float64, param_dtype=jnp.float64)",
        right="init_stats(channels, stats_dtype(x.dtype))  # float32, or float64 for float64",
        tolerance=0,
        reason="types are equal or not",
        run=_types,
    ),
    Row(
        id="BN7",
        title="Padded rows",
        compared="output of 80 images in a batch padded to 128",
        explanation=(
            "A last, ragged batch that is filled up to a fixed shape changes mean and variance of the real images, "
            "unless the padded rows are masked out of both."
        ),
        wrong="x = jnp.pad(x, ((0, 48), (0, 0), (0, 0), (0, 0)))\nnn.BatchNorm(use_running_average=False)(x)",
        right="BatchNorm(rule)(x, train=True, mask=jnp.arange(128) < 80)",
        tolerance=2e-6,
        reason="float32 sums of 1,280 values, outputs up to 4",
        run=_padding,
    ),
    Row(
        id="BN7R",
        title="Replicas",
        compared="output of a batch of 64, naive as four replicas of 16",
        explanation=(
            "Under vmap or pmap each replica normalises by its own 16 images, unless axis_name says otherwise. Under "
            "jit a sharded batch is still one batch: the compiler inserts the sums over devices."
        ),
        wrong="jax.vmap(lambda x: norm.apply(variables, x, mutable=['batch_stats']))(x.reshape(4, 16, ...))",
        right="jax.jit(step)(state, x)  # x is sharded over the mesh; the mean is over all of it",
        tolerance=2e-6,
        reason="float32 sums of 256 values, outputs up to 4",
        run=_replicas,
    ),
    Row(
        id="BN8",
        title="Statistics that are not kept",
        compared="output in evaluation after ten training steps",
        explanation=(
            "PyTorch's layer changes its buffers in place. A Linen module changes nothing: apply(..., mutable=["
            "'batch_stats']) returns the new statistics, and who does not pass them on evaluates with mean 0 and "
            "variance 1 for ever. Nothing raises."
        ),
        wrong="y, _ = model.apply(variables, x, mutable=['batch_stats'])",
        right=(
            "y, new = model.apply(variables, x, train=True, mutable=['batch_stats'])\nvariables = {**variables, **new}"
        ),
        tolerance=1e-12,
        reason="sums of 128 doubles, ten times",
        run=lambda: _evaluated(keep=False, use_running_average=True),
    ),
    Row(
        id="BN9",
        title="Evaluation that still trains",
        compared="output in evaluation after ten training steps",
        explanation=(
            "model.eval() is a state of PyTorch's module; in Flax the same choice is an argument of every call. Left "
            "at its training value, the test images are normalised by their own batch, and a result depends on which "
            "images stand next to it."
        ),
        wrong="y, _ = norm.apply(variables, x, use_running_average=False, mutable=['batch_stats'])",
        right="y = norm.apply(variables, x, train=False)",
        tolerance=1e-12,
        reason="sums of 128 doubles, ten times",
        run=lambda: _evaluated(keep=True, use_running_average=False),
    ),
)
