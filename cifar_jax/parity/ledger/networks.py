"""Rows about whole networks: what agrees, what the BatchNorm rule changes, precision, and weights that cross over."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from cifar_jax.errors import InputError
from cifar_jax.nn import models, optimizers
from cifar_jax.nn.batch_norm import flax_rule, lecture_rule, torch_rule
from cifar_jax.nn.losses import cross_entropy
from cifar_jax.parity import twin
from cifar_jax.parity.ledger import stock
from cifar_jax.parity.ledger.layout import nchw
from cifar_jax.parity.ledger.page import Picture
from cifar_jax.parity.ledger.row import Measurement, Row, compare, compare_facts
from cifar_jax.parity.state_dict import from_state_dict, to_state_dict

_WIDTHS, _CLASSES, _STEPS = (6, 8), 5, 80
_RULES = {"torch": torch_rule, "lecture": lecture_rule, "flax": flax_rule}


def _data() -> tuple[np.ndarray, np.ndarray]:
    """Five classes of 8x8 images that differ by a faint pattern, 352 of them."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, _CLASSES, 352)
    return rng.normal(0.5, 1, (352, 8, 8, 3)) + rng.normal(0, 0.7, (_CLASSES, 8, 8, 3))[labels], labels


def _batches() -> list[np.ndarray]:
    """Positions of the 80 batches of 32: 8 epochs of ten; the last 32 images are for evaluation."""
    rng = np.random.default_rng(1)
    return [batch for _ in range(8) for batch in np.split(rng.permutation(320), 10)]


def _network(rule: str) -> models.CNN:
    stages = tuple((width,) for width in _WIDTHS)
    return models.CNN(stages=stages, num_classes=_CLASSES, norm_rule=_RULES[rule](), dtype=jnp.float64)


def _stock(norm_momentum: float = 0.99) -> stock.StockCNN:
    return stock.StockCNN(_WIDTHS, _CLASSES, norm_momentum=norm_momentum, dtype=jnp.float64)


def _twin(rule: str) -> twin.CNN:
    torch.manual_seed(0)
    stages = tuple((width,) for width in _WIDTHS)
    return twin.CNN(stages, _CLASSES, rule=rule, momentum=None, epsilon=1e-5).double()


def _variables(network) -> dict:
    """The twin's initial weights, as our trees, for `network`."""
    like = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False))
    stats = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.float64), like["batch_stats"])
    variables = from_state_dict(twin.read_arrays(_twin("torch")), like["params"], stats)
    return jax.tree.map(jnp.asarray, {"params": variables.params, "batch_stats": variables.batch_stats})


def _torch_eval_loss(rule: str) -> float:
    """Loss on the last 32 images after 80 steps of SGD with momentum and decay."""
    images, labels = _data()
    network = _twin(rule)
    optimizer = twin.create_optimizer("sgd", network.parameters(), lr=0.05, momentum=0.9, weight_decay=0.0005)
    for batch in _batches():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(nchw(images[batch])), torch.tensor(labels[batch])).backward()
        optimizer.step()
    with torch.no_grad():
        logits = network.eval()(nchw(images[-32:]))
    return torch.nn.functional.cross_entropy(logits, torch.tensor(labels[-32:])).item()


def _jax_eval_loss(network, tx: optax.GradientTransformation) -> float:
    images, labels = (jnp.asarray(array) for array in _data())
    variables = _variables(network)
    opt_state = tx.init(variables["params"])

    @jax.jit
    def step(variables, opt_state, x, y):
        def loss_fn(params):
            logits, new = network.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
            return cross_entropy(logits, y).mean(), new

        grads, new = jax.grad(loss_fn, has_aux=True)(variables["params"])
        updates, opt_state = tx.update(grads, opt_state, variables["params"])
        return {**new, "params": optax.apply_updates(variables["params"], updates)}, opt_state

    for batch in _batches():
        variables, opt_state = step(variables, opt_state, images[batch], labels[batch])
    logits = jax.jit(lambda variables: network.apply(variables, images[-32:], train=False))(variables)
    return float(cross_entropy(logits, labels[-32:]).mean())


@functools.cache
def _eval_losses() -> dict[str, tuple[float, float]]:
    """Evaluation loss in torch and here under each rule; "naive" is stock Flax with momentum 0.1, and by default."""
    tx = optimizers.sgd(0.05, momentum=0.9, weight_decay=0.0005)
    with jax.enable_x64(True):
        losses = {rule: (_torch_eval_loss(rule), _jax_eval_loss(_network(rule), tx)) for rule in _RULES}
        stock_tx = optax.chain(optax.add_decayed_weights(0.0005), optax.sgd(0.05, momentum=0.9))
        naive = {momentum: _jax_eval_loss(_stock(momentum), stock_tx) for momentum in (0.1, 0.99)}
    return {**losses, "naive": (naive[0.1], naive[0.99])}


def _rule_matters(rule: str) -> Measurement:
    losses = _eval_losses()
    note = ", ".join(f"{name}'s rule {losses[name][0]:.4g}" for name in _RULES)
    copied, default = losses["naive"]
    naive = copied if rule == "torch" else default
    return compare(*losses[rule], naive, note=f"torch's loss under {note}; training is the same under all three")


def _training_agrees() -> Measurement:
    """Logits and every gradient of one training step, in double, in one vector."""
    images, labels = _data()
    x, y = images[:32], labels[:32]
    theirs = _twin("torch")
    logits = theirs(nchw(x))
    torch.nn.functional.cross_entropy(logits, torch.tensor(y)).backward()
    grads = {name: parameter.grad.numpy() for name, parameter in theirs.named_parameters()}

    def side(network):
        variables = _variables(network)

        @jax.jit
        @functools.partial(jax.grad, has_aux=True)
        def step(params):
            logits, _ = network.apply(
                {**variables, "params": params}, jnp.asarray(x), train=True, mutable=["batch_stats"]
            )
            return cross_entropy(logits, jnp.asarray(y)).mean(), logits

        grads, logits = step(variables["params"])
        return np.concatenate([np.ravel(logits), *(g.ravel() for g in to_state_dict(grads).values())])

    with jax.enable_x64(True):
        expected = np.concatenate([logits.detach().numpy().ravel(), *(g.ravel() for g in grads.values())])
        return compare(expected, side(_network("torch")), side(_stock()))


def _round_mantissa(x: np.ndarray, bits: int) -> np.ndarray:
    """float32 values rounded to a mantissa of so many bits: 10 as TF32, 7 as bfloat16. Ties go to even."""
    drop = 23 - bits
    raw = np.ascontiguousarray(x, np.float32).view(np.uint32)
    half = np.uint32((1 << (drop - 1)) - 1) + ((raw >> np.uint32(drop)) & np.uint32(1))
    return ((raw + half) & ~np.uint32((1 << drop) - 1)).view(np.float32)


def _precision() -> Measurement:
    """A 3x3 convolution of 64 channels: torch on the CPU, ours on the CPU, and with inputs rounded as a GPU does."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(4, 8, 8, 64)).astype(np.float32)
    kernel = (rng.normal(size=(3, 3, 64, 64)) / np.sqrt(576)).astype(np.float32)
    theirs = torch.nn.functional.conv2d(nchw(x), torch.tensor(kernel.transpose(3, 2, 0, 1)), padding=1)
    theirs = theirs.numpy().transpose(0, 2, 3, 1)

    @functools.partial(jax.jit, static_argnames="precision")
    def convolve(x, kernel, precision=None):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=precision
        )

    ours = convolve(x, kernel, precision="highest")
    tf32, bf16 = (convolve(_round_mantissa(x, bits), _round_mantissa(kernel, bits)) for bits in (10, 7))
    note = f"simulated by rounding the inputs; with bfloat16's 7 bits the error is {np.abs(bf16 - theirs).max():.0e}"
    return compare(theirs, ours, tf32, note=note)


def _draw_precision() -> Picture:
    """Largest error of a product sum by the length of the sum."""
    rng, lengths = np.random.default_rng(3), [9, 27, 72, 288, 576, 1152, 2304, 4608]
    errors = {"ours: float32": [], "naive: TF32, 10 bits": [], "bfloat16, 7 bits": []}
    for length in lengths:
        x = rng.normal(size=(512, length)).astype(np.float32)
        w = (rng.normal(size=length) / np.sqrt(length)).astype(np.float32)
        exact = x.astype(np.float64) @ w.astype(np.float64)
        for name, bits in zip(errors, (23, 10, 7), strict=True):
            rounded = (x, w) if bits == 23 else (_round_mantissa(x, bits), _round_mantissa(w, bits))
            errors[name].append(float(np.abs(jnp.dot(*rounded, precision="highest") - exact).max()))
    return Picture(
        "Error of a sum of products of deviation 1", "terms in the sum", "largest error", lengths, errors, xlog=True,
        ylog=True,
    )  # fmt: skip


def _weights_cross() -> Measurement:
    """Evaluation logits of the twin, of ours with its state_dict, and with kernels reshaped instead of transposed."""
    x = _data()[0][:8]
    theirs = _twin("torch").train()
    theirs(nchw(x))
    arrays = twin.read_arrays(theirs)
    with torch.no_grad():
        expected = theirs.eval()(nchw(x)).numpy()
    with jax.enable_x64(True):
        network = _network("torch")
        like = _variables(network)
        loaded = from_state_dict(arrays, like["params"], like["batch_stats"])
        back = to_state_dict(loaded.params, loaded.batch_stats, updates=loaded.updates)
        same = all(np.array_equal(back[key], arrays[key]) for key in arrays) and list(back) == list(arrays)
        reshaped = {
            module: {
                name: arrays[f"{module}.weight"].reshape(leaf.shape) if leaf.ndim == 4 else leaf
                for name, leaf in leaves.items()
            }
            for module, leaves in loaded.params.items()
        }

        def logits(params):
            variables = jax.tree.map(jnp.asarray, {"params": params, "batch_stats": loaded.batch_stats})
            return network.apply(variables, jnp.asarray(x), train=False)

        note = f"the round trip is {'' if same else 'NOT '}bitwise"
        return compare(expected, logits(loaded.params), logits(reshaped), note=note)


def _strict() -> Measurement:
    """A state_dict with a key that the network does not have and one of its own misspelt."""
    arrays = twin.read_arrays(_twin("torch"))
    arrays["norm1.weights"] = arrays.pop("norm1.weight")
    with jax.enable_x64(True):
        like = _variables(_network("torch"))

    def theirs():
        twin.load_arrays(_twin("torch"), arrays)

    def ours():
        from_state_dict(arrays, like["params"], like["batch_stats"])

    def naive():
        names = {"scale": "weight", "bias": "bias"}
        jax.tree.map_with_path(
            lambda path, leaf: arrays.get(f"{path[0].key}.{names.get(path[1].key)}", leaf), like["params"]
        )

    return compare_facts(_outcome(theirs), _outcome(ours), _outcome(naive))


def _outcome(run) -> str:
    try:
        run()
    except (RuntimeError, InputError):
        return "refused"
    return "loaded"


ROWS = (
    Row(
        id="N1",
        title="One step of training",
        compared="logits and every gradient of a two-convolution network, float64",
        explanation=(
            "In training mode a plain Flax network with torch's weights gives torch's logits and torch's gradients. "
            "What differs is everything around it: the statistics it keeps, the optimizer, the schedule, the data."
        ),
        wrong="nn.Conv, nn.BatchNorm, nn.relu, nn.max_pool with strides, nn.Dense",
        right="create_model('cnn6', norm_rule=torch_rule())",
        tolerance=1e-11,
        reason="rounding of doubles through two BatchNorms",
        run=_training_agrees,
        naive_fails=False,
    ),
    Row(
        id="BN1E",
        title="What the rule changes: torch's",
        compared="evaluation loss after 80 steps of SGD, float64",
        explanation=(
            "The same 80 steps; only the running averages differ, and with them every number of the evaluation. Stock "
            "Flax with PyTorch's 0.1 keeps the lecture's statistics."
        ),
        wrong="nn.BatchNorm(use_running_average=not train, momentum=0.1)",
        right="create_model('cnn6', norm_rule=torch_rule(momentum=0.1))",
        tolerance=1e-10,
        reason="80 steps of doubles",
        run=lambda: _rule_matters("torch"),
    ),
    Row(
        id="BN1EL",
        title="What the rule changes: the lecture's",
        compared="evaluation loss after 80 steps of SGD, float64",
        explanation=(
            "With the lecture's statistics the evaluation stands on the last batch. Flax's default, 0.99, has after 80 "
            "steps still almost half of its start, mean 0 and variance 1."
        ),
        wrong="nn.BatchNorm(use_running_average=not train)  # momentum=0.99",
        right="create_model('cnn6', norm_rule=lecture_rule())",
        tolerance=1e-10,
        reason="80 steps of doubles",
        run=lambda: _rule_matters("lecture"),
    ),
    Row(
        id="BN1EF",
        title="What the rule changes: Flax's",
        compared="evaluation loss after 80 steps of SGD, float64",
        explanation=(
            "Under Flax's rule stock Flax is right, and torch needs a BatchNorm of its own: momentum 0.01 would still "
            "keep the unbiased variance."
        ),
        wrong="nn.BatchNorm(use_running_average=not train)",
        right="create_model('cnn6', norm_rule=flax_rule(momentum=0.99))",
        tolerance=1e-10,
        reason="80 steps of doubles",
        run=lambda: _rule_matters("flax"),
        naive_fails=False,
    ),
    Row(
        id="P1",
        title="Precision of a GPU's convolutions",
        compared="a 3x3 convolution of 64 channels; naive with inputs rounded to TF32's 10 bits (simulated)",
        explanation=(
            "On a GPU, PyTorch computes float32 convolutions with inputs rounded to TF32 unless told otherwise, and "
            "JAX may too, or to bfloat16, by jax_default_matmul_precision. Both are right and neither is float32: "
            "compare on the CPU, in float64 where it matters. This row rounds the inputs in software; no GPU is asked."
        ),
        wrong="torch.backends.cudnn.allow_tf32  # True by default\njax.config.jax_default_matmul_precision  # None",
        right="jax.default_matmul_precision('highest'), torch.backends.cudnn.allow_tf32 = False",
        tolerance=2e-5,
        reason="float32 sums of 576 products, outputs up to 4",
        run=_precision,
        stable=False,
        picture=_draw_precision,
    ),
    Row(
        id="C1",
        title="Weights of a state_dict: values",
        compared="evaluation logits with torch's weights, float64",
        explanation=(
            "torch's kernels are OIHW, Flax's HWIO. A reshape has the right shape and puts the weights anywhere; a "
            "transpose is right, and the way back is bitwise the same file."
        ),
        wrong="kernel = weight.reshape(3, 3, in_channels, out_channels)",
        right="params, batch_stats, updates = from_state_dict(state_dict, params, batch_stats)",
        tolerance=1e-12,
        reason="rounding of doubles through two convolutions",
        run=_weights_cross,
    ),
    Row(
        id="C1S",
        title="Weights of a state_dict: keys",
        compared="a state_dict with one key misspelt",
        explanation=(
            "load_state_dict refuses missing and unused keys. A loop that copies what it finds leaves the rest at its "
            "initial values, and the network is wrong without a word."
        ),
        wrong="leaf = state_dict.get(name, leaf)",
        right="from_state_dict(state_dict, params, batch_stats)  # names all that is missing, unused or misshapen",
        tolerance=0,
        reason="either it is refused or not",
        run=_strict,
    ),
)
