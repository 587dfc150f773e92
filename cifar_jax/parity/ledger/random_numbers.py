"""Rows R: torch's random numbers on the CPU, bit for bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch

from cifar_jax.data.order import epoch_order
from cifar_jax.nn import models
from cifar_jax.nn.batch_norm import torch_rule
from cifar_jax.parity import twin
from cifar_jax.parity.ledger.row import Measurement, Row, compare
from cifar_jax.parity.state_dict import to_state_dict
from cifar_jax.runs import torch_random

_SEED, _IMAGES, _EPOCHS = 0, 1000, 2
_STAGES = ((8,),)


class _Positions(torch.utils.data.Dataset):
    """Each item is its own position and whether RandomHorizontalFlip would mirror it; test items draw nothing."""

    def __init__(self, n: int, train: bool):
        self.n, self.train = n, train

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[int, bool]:
        return index, self.train and bool(torch.rand(1) < 0.5)


@functools.cache
def _program() -> tuple[dict, np.ndarray, np.ndarray]:
    """What the lecture's program draws: initial weights, then the order and the flips of two epochs."""
    torch.manual_seed(_SEED)
    network = twin.CNN(_STAGES, 100, rule="torch", momentum=None, epsilon=1e-5)
    weights = {name: parameter.detach().numpy() for name, parameter in network.named_parameters()}
    train = torch.utils.data.DataLoader(_Positions(_IMAGES, train=True), batch_size=200, shuffle=True)
    test = torch.utils.data.DataLoader(_Positions(200, train=False), batch_size=200)
    orders, flips = [], []
    for _ in range(_EPOCHS):
        items = list(train)
        list(test)
        orders.append(np.concatenate([positions.numpy() for positions, _ in items]))
        flips.append(np.concatenate([flipped.numpy() for _, flipped in items]))
    return weights, np.array(orders), np.array(flips)


@functools.cache
def _fresh() -> dict:
    """Initial parameters as Flax draws them from the seed."""
    network = models.CNN(stages=_STAGES, num_classes=100, norm_rule=torch_rule())
    init = jax.jit(lambda key: network.init(key, jnp.zeros((1, 8, 8, 3)), train=False))
    return init(jax.random.key(_SEED))["params"]


def _vector(state_dict: dict) -> np.ndarray:
    return np.concatenate([np.ravel(array) for array in state_dict.values()])


def _weights() -> Measurement:
    theirs = _program()[0]
    naive = _fresh()
    ours = to_state_dict(torch_random.draw_params(_SEED, naive))
    equal = np.mean(_vector(ours) == _vector(theirs))
    note = f"{100 * equal:.0f} % of {len(_vector(ours)):,} parameters are equal in every bit"
    return compare(_vector(theirs), _vector(ours), _vector(to_state_dict(naive)), note=note)


def _epochs() -> torch_random.Epochs:
    return torch_random.Epochs(_SEED, _IMAGES, True, torch_random.count_draws(_fresh()))


def _equal(theirs: np.ndarray, other) -> int:
    return int(np.sum(np.asarray(other) == theirs))


def _orders() -> Measurement:
    theirs, epochs = _program()[1], _epochs()
    ours = [epochs.draw(epoch)[0] for epoch in range(_EPOCHS)]
    naive = [np.asarray(epoch_order(jax.random.key(_SEED), epoch, _IMAGES)) for epoch in range(_EPOCHS)]
    return compare(*(_equal(theirs, side) for side in (theirs, ours, naive)))


def _flips() -> Measurement:
    theirs, epochs = _program()[2], _epochs()
    ours = [epochs.draw(epoch)[1] for epoch in range(_EPOCHS)]
    keys = (jax.random.fold_in(jax.random.key(_SEED), epoch) for epoch in range(_EPOCHS))
    naive = jnp.stack([jax.random.bernoulli(key, 0.5, (_IMAGES,)) for key in keys])
    return compare(*(_equal(theirs, side) for side in (theirs, ours, naive)))


ROWS = (
    Row(
        id="R1",
        title="Random numbers: initial weights",
        compared="every initial weight of a one-convolution network, seed 0 in both",
        explanation=(
            "PyTorch's CPU stream is a Mersenne Twister, JAX's keys are hashed by threefry: the same seed gives other "
            "numbers of the same distribution. The Twister is NumPy's too, so torch's weights can be drawn without "
            "torch."
        ),
        wrong="params = model.init(jax.random.key(0), x, train=False)['params']",
        right="params = torch_random.draw_params(0, params)  # --config.rng=torch",
        tolerance=0,
        reason="equal in every bit",
        run=_weights,
        stable=False,
    ),
    Row(
        id="R1O",
        title="Random numbers: order of the images",
        compared="places of two epochs of 1,000 images that are the DataLoader's",
        explanation=(
            "DataLoader(shuffle=True) draws the seed of its permutation from the global stream, after the weights and "
            "a seed for its workers."
        ),
        wrong="order = jax.random.permutation(jax.random.fold_in(jax.random.key(0), epoch), n)",
        right="order, flips = torch_random.Epochs(seed, n, flips=True, draws_before=draws).draw(epoch)",
        tolerance=0,
        reason="whole numbers",
        run=_orders,
        stable=False,
    ),
    Row(
        id="R1F",
        title="Random numbers: flips",
        compared="flips of two epochs of 1,000 images that are torch's",
        explanation="RandomHorizontalFlip draws torch.rand(1) < 0.5 for each image as the DataLoader reaches it.",
        wrong="flips = jax.random.bernoulli(key, 0.5, (n,))",
        right="order, flips = torch_random.Epochs(seed, n, flips=True, draws_before=draws).draw(epoch)",
        tolerance=0,
        reason="whole numbers",
        run=_flips,
        stable=False,
    ),
)
