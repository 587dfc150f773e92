"""Rows L: convolutions, pooling, flattening, ReLU and initial weights."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch

from cifar_jax.nn import layers, models
from cifar_jax.nn.batch_norm import torch_rule
from cifar_jax.nn.losses import cross_entropy
from cifar_jax.parity import twin
from cifar_jax.parity.ledger import stock
from cifar_jax.parity.ledger.layout import nchw, nhwc
from cifar_jax.parity.ledger.row import Measurement, Row, compare
from cifar_jax.parity.state_dict import to_state_dict


def _stride_two() -> Measurement:
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 8, 8, 3)), rng.normal(size=(3, 3, 3, 4))
    layer = torch.nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False).double()
    layer.weight.data = torch.tensor(kernel.transpose(3, 2, 0, 1))
    theirs = nhwc(layer(nchw(x)))
    with jax.enable_x64(True):

        def convolve(**options):
            conv = nn.Conv(4, (3, 3), strides=2, use_bias=False, **options)
            return conv.apply({"params": {"kernel": jnp.asarray(kernel)}}, jnp.asarray(x))

        return compare(theirs, convolve(padding=1), convolve(), note="at stride 1 the two are the same")


def _network_convolution() -> Measurement:
    """The first convolution of our CNN itself, as its forward pass leaves it; naive: Flax's default padding."""
    x = np.random.default_rng(1).normal(size=(2, 8, 8, 3))
    with jax.enable_x64(True):
        network = _cnn((4,), dtype=jnp.float64)
        variables = stock.draw(network, x)
        kernel = variables["params"]["conv1"]["kernel"]
        _, seen = network.apply(variables, jnp.asarray(x), train=False, capture_intermediates=_is_convolution)
        ours = seen["intermediates"]["conv1"]["__call__"][0]
        naive = nn.Conv(4, (3, 3), use_bias=False).apply({"params": {"kernel": kernel}}, jnp.asarray(x))
        theirs = torch.nn.functional.conv2d(nchw(x), torch.tensor(np.asarray(kernel).transpose(3, 2, 0, 1)), padding=1)
        return compare(nhwc(theirs), ours, naive)


def _cnn(widths: tuple[int, ...], num_classes: int = 10, **options) -> models.CNN:
    """The lecture's network with one convolution of each of these widths to a stage."""
    stages = tuple((width,) for width in widths)
    return models.CNN(stages=stages, num_classes=num_classes, norm_rule=torch_rule(), **options)


def _is_convolution(module: nn.Module, method: str) -> bool:
    return isinstance(module, nn.Conv)


def _flatten() -> Measurement:
    """A linear layer on flattened 4x4 maps of 8 channels, with torch's weights."""
    rng = np.random.default_rng(2)
    x, weight = rng.normal(size=(5, 4, 4, 8)), rng.normal(size=(10, 128)) / np.sqrt(128)
    theirs = (torch.nn.Flatten()(nchw(x)) @ torch.tensor(weight).T).numpy()
    with jax.enable_x64(True):
        dense = nn.Dense(10, use_bias=False)
        flat = jnp.asarray(x).reshape(5, -1)
        naive = dense.apply({"params": {"kernel": weight.T}}, flat)
        # Rows of the kernel from the order channel, height, width to height, width, channel.
        kernel = weight.T.reshape(8, 4, 4, 10).transpose(1, 2, 0, 3).reshape(128, 10)
        ours = dense.apply({"params": {"kernel": kernel}}, flat)
        correlation = np.corrcoef(np.asarray(naive).ravel(), theirs.ravel())[0, 1]
        return compare(theirs, ours, naive, note=f"correlation of the naive outputs with torch's: {correlation:.2f}")


def _deviation(weights, fan_in: int) -> float:
    return float(np.asarray(weights).std() * np.sqrt(fan_in))


def _kernel_deviation() -> Measurement:
    torch.manual_seed(0)
    shape, fan_in = (3, 3, 64, 128), 9 * 64
    theirs = _deviation(torch.nn.Conv2d(64, 128, 3).weight.detach(), fan_in)
    ours = _deviation(layers.torch_kernel_init(jax.random.key(0), shape), fan_in)
    variables = nn.Conv(128, (3, 3)).init(jax.random.key(0), jnp.zeros((1, 4, 4, 64)))
    return compare(theirs, ours, _deviation(variables["params"]["kernel"], fan_in), unit=theirs)


def _bias_deviation() -> Measurement:
    torch.manual_seed(0)
    theirs = _deviation(torch.nn.Linear(256, 10000).bias.detach(), 256)
    ours = _deviation(layers.torch_bias_init(256)(jax.random.key(0), (10000,)), 256)
    variables = nn.Dense(10000).init(jax.random.key(0), jnp.zeros((1, 256)))
    return compare(theirs, ours, _deviation(variables["params"]["bias"], 256), unit=theirs)


def _first_loss() -> Measurement:
    """Loss of thirty fresh networks, in training mode on 64 images of noise; the last width is CNN6's."""
    rng, seeds = np.random.default_rng(3), 30
    x, labels = rng.uniform(-1, 1, (64, 4, 4, 3)).astype(np.float32), rng.integers(0, 100, 64)
    network = _cnn((256,), 100)
    theirs = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        with torch.no_grad():
            logits = twin.CNN(network.stages, 100, rule="torch", momentum=None, epsilon=1e-5)(nchw(x))
        theirs.append(torch.nn.functional.cross_entropy(logits, torch.tensor(labels)).item())

    def mean_loss(network):
        init = jax.jit(lambda key: network.init(key, jnp.asarray(x), train=False))

        @jax.jit
        def loss(variables):
            logits, _ = network.apply(variables, jnp.asarray(x), train=True, mutable=["batch_stats"])
            return cross_entropy(logits, jnp.asarray(labels)).mean()

        return np.mean([loss(init(jax.random.key(seed))) for seed in range(seeds)])

    error = np.std(theirs) * np.sqrt(2 / seeds)
    note = f"the difference of two such means has a standard error of {error:.3f}"
    return compare(np.mean(theirs), mean_loss(network), mean_loss(stock.StockCNN((256,), 100)), note=note)


def _pool_size() -> Measurement:
    """Height of the feature maps after the first pool of our CNN: what its second convolution gives."""
    x = jnp.zeros((1, 32, 32, 3))
    network = _cnn((4, 4))

    def forward():
        return network.apply(stock.draw(network, x), x, train=False, capture_intermediates=_is_convolution)

    _, seen = jax.eval_shape(forward)
    ours = seen["intermediates"]["conv2"]["__call__"][0].shape[1]
    return compare(torch.nn.MaxPool2d(2)(nchw(x)).shape[2], ours, nn.max_pool(x, (2, 2)).shape[1])


def _pool_ties() -> Measurement:
    """Gradient of a weighted sum of maxima by a map of zeros and ones, where most windows hold equals."""
    rng = np.random.default_rng(5)
    x, weights = rng.integers(0, 2, (4, 8, 8, 3)).astype(np.float32), rng.normal(size=(4, 4, 4, 3)).astype(np.float32)

    def gradient(pool):
        return jax.jit(jax.grad(lambda x: jnp.sum(pool(x) * weights)))(jnp.asarray(x))

    its_x = nchw(x).requires_grad_()
    (torch.nn.functional.max_pool2d(its_x, 2) * nchw(weights)).sum().backward()
    naive = gradient(lambda x: x.reshape(4, 4, 2, 4, 2, 3).max((2, 4)))
    return compare(nhwc(its_x.grad), gradient(layers.max_pool), naive)


def _black_image() -> Measurement:
    """Gradient of the sum of logits by BatchNorm's bias on a black image, where every activation is exactly 0."""
    x = np.zeros((1, 8, 8, 3), np.float32)
    network = _cnn((4,))
    variables = stock.draw(network, x)

    def bias_gradient(network):
        def total(params):
            return network.apply({**variables, "params": params}, jnp.asarray(x), train=False).sum()

        return jax.jit(jax.grad(total))(variables["params"])["norm1"]["bias"]

    theirs = twin.CNN(network.stages, 10, rule="torch", momentum=None, epsilon=1e-5).eval()
    arrays = to_state_dict(variables["params"], variables["batch_stats"])
    twin.load_arrays(theirs, arrays)
    theirs(nchw(x)).sum().backward()
    naive = stock.StockCNN((4,), 10, activation=lambda x: jnp.maximum(x, 0))
    return compare(theirs.norm1.bias.grad.numpy(), bias_gradient(network), bias_gradient(naive))


ROWS = (
    Row(
        id="L1",
        title="Padding at stride 2",
        compared="a 3x3 convolution with stride 2 on 8x8",
        explanation=(
            "PyTorch's padding=1 adds a row above and one below. Flax's default, SAME, pads only as far as the last "
            "window needs: at stride 2 on an even size nothing above and one row below, so every window is shifted by "
            "one pixel. At stride 1 the two agree."
        ),
        wrong="nn.Conv(width, (3, 3), strides=2)  # padding='SAME'",
        right="nn.Conv(width, (3, 3), strides=2, padding=1)",
        tolerance=1e-12,
        reason="sums of 27 doubles",
        run=_stride_two,
    ),
    Row(
        id="L1N",
        title="Padding at stride 1",
        compared="the first convolution inside our network",
        explanation="All of the lecture's convolutions are 3x3 with stride 1 and padding 1: SAME is the same there.",
        wrong="nn.Conv(width, (3, 3))",
        right="nn.Conv(width, (3, 3), padding=1)",
        tolerance=1e-12,
        reason="sums of 27 doubles",
        run=_network_convolution,
        naive_fails=False,
    ),
    Row(
        id="L2",
        title="Flatten before a linear layer",
        compared="a linear layer with torch's weights on flattened maps",
        explanation=(
            "NCHW flattens to channel, height, width; NHWC to height, width, channel. A transposed kernel has the "
            "right shape and the wrong rows, and the output is as good as random. After global pooling, as in CNN6 and "
            "CNN10, there is nothing to permute."
        ),
        wrong="kernel = weight.T",
        right="kernel = weight.T.reshape(C, H, W, -1).transpose(1, 2, 0, 3).reshape(H * W * C, -1)",
        tolerance=1e-12,
        reason="sums of 128 doubles",
        run=_flatten,
    ),
    Row(
        id="L3",
        title="Initial weights",
        compared="deviation of 73,728 convolution weights times sqrt(fan_in)",
        explanation=(
            "PyTorch draws weights from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), whose deviation is 0.577/sqrt(fan_in). "
            "Flax's default, lecun_normal, is 1.7 times as wide."
        ),
        wrong="nn.Conv(width, (3, 3))  # kernel_init=lecun_normal()",
        right="nn.Conv(width, (3, 3), kernel_init=torch_kernel_init)",
        tolerance=0.01,
        reason="relative; four standard errors of the ratio of two such deviations are 0.9 %",
        run=_kernel_deviation,
        stable=False,
    ),
    Row(
        id="L3B",
        title="Initial biases",
        compared="deviation of 10,000 biases of a linear layer times sqrt(fan_in)",
        explanation="PyTorch draws biases from the same interval as the weights; Flax starts them at 0.",
        wrong="nn.Dense(classes)  # bias_init=zeros",
        right="nn.Dense(classes, bias_init=torch_bias_init(fan_in))",
        tolerance=0.025,
        reason="relative; four standard errors of the ratio of two such deviations are 2.5 %",
        run=_bias_deviation,
        stable=False,
    ),
    Row(
        id="L3F",
        title="First loss",
        compared="loss of a fresh one-stage network, mean of thirty seeds",
        explanation=(
            "What the initial weights of the last layer do to the first number in the log. ln 100 = 4.605 is the loss "
            "of a network that says nothing."
        ),
        wrong="nn.Conv(width, (3, 3)), nn.Dense(classes)  # lecun_normal, zero biases",
        right="create_model('cnn6', norm_rule=rule, init_name='torch')",
        tolerance=0.05,
        reason="two standard errors of the difference of two such means",
        run=_first_loss,
        stable=False,
    ),
    Row(
        id="L4",
        title="Max pool",
        compared="height of 32x32 maps after a 2x2 max pool",
        explanation="PyTorch's stride is the window unless one is given; that of nn.max_pool is 1.",
        wrong="nn.max_pool(x, (2, 2))",
        right="max_pool(x)  # cifar_jax.nn.layers; or nn.max_pool(x, (2, 2), strides=(2, 2))",
        tolerance=0,
        reason="a whole number",
        run=_pool_size,
    ),
    Row(
        id="L4T",
        title="Max pool's gradient at ties",
        compared="gradient of 2x2 maxima over zeros and ones",
        explanation=(
            "Of equal values PyTorch gives the gradient to the first, and so does nn.max_pool. The faster pool by "
            "reshape and max shares it between them, so values get gradients that PyTorch does not give."
        ),
        wrong="x.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))",
        right="max_pool(x)  # cifar_jax.nn.layers",
        tolerance=0,
        reason="the same numbers in the same places",
        run=_pool_ties,
    ),
    Row(
        id="L5",
        title="ReLU at 0",
        compared="gradient through the network's ReLU on a black image",
        explanation=(
            "The subgradient at 0 is a convention: 0 in PyTorch and in jax.nn.relu, one half in jnp.maximum, which "
            "shares it between its two arguments. Dead channels and black borders are exactly 0."
        ),
        wrong="jnp.maximum(x, 0)",
        right="nn.relu(x)",
        tolerance=0,
        reason="0 times anything",
        run=_black_image,
    ),
)
