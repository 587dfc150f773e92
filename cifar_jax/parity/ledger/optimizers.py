"""Rows O: SGD and Adam, and what weight decay means in each."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from cifar_jax.nn import optimizers
from cifar_jax.parity.ledger.page import Picture
from cifar_jax.parity.ledger.row import Measurement, Row, compare

_STEPS = 300


def _problem() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """A kernel and a bias, and 300 gradients that are small beside them, so that weight decay shows."""
    rng = np.random.default_rng(0)
    shapes = [(4, 5), (5,)]
    return [rng.normal(size=s) for s in shapes], [0.05 * rng.normal(size=(_STEPS, *s)) for s in shapes]


def _torch_run(create: Callable, weights: list[np.ndarray], grads: list[np.ndarray]) -> np.ndarray:
    """Parameters after all steps, in one vector."""
    parameters = [torch.nn.Parameter(torch.tensor(w)) for w in weights]
    optimizer = create(parameters)
    for step in range(len(grads[0])):
        for parameter, g in zip(parameters, grads, strict=True):
            parameter.grad = torch.tensor(g[step])
        optimizer.step()
    return np.concatenate([p.detach().numpy().ravel() for p in parameters])


def _jax_run(tx: optax.GradientTransformation, weights: list[np.ndarray], grads: list[np.ndarray]) -> np.ndarray:
    def step(carry, g):
        params, opt_state = carry
        updates, opt_state = tx.update(g, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    params = [jnp.asarray(w) for w in weights]
    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), [jnp.asarray(g) for g in grads])
    return np.concatenate([np.ravel(p) for p in params])


def _follow(create: Callable, ours: optax.GradientTransformation, naive: optax.GradientTransformation) -> Measurement:
    """Parameters after 300 steps in double; errors relative to how far torch's moved."""
    weights, grads = _problem()
    with jax.enable_x64(True):
        theirs = _torch_run(create, weights, grads)
        moved = np.abs(theirs - np.concatenate([w.ravel() for w in weights])).max()
        return compare(theirs, _jax_run(ours, weights, grads), _jax_run(naive, weights, grads), unit=moved)


_LR, _MOMENTUM, _DECAY = 0.05, 0.9, 0.0005


def _sgd(naive: optax.GradientTransformation) -> Measurement:
    return _follow(
        lambda p: torch.optim.SGD(p, lr=_LR, momentum=_MOMENTUM, weight_decay=_DECAY),
        optimizers.sgd(_LR, momentum=_MOMENTUM, weight_decay=_DECAY),
        naive,
    )


def _adam(naive: optax.GradientTransformation, weight_decay: float) -> Measurement:
    return _follow(
        lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=weight_decay),
        optimizers.adam(0.01, weight_decay=weight_decay),
        naive,
    )


def _first_update() -> Measurement:
    """Adam's first step in float32 at lr = 1, from weights of 0: the parameters are the update itself."""
    weights = [np.zeros((4, 5), np.float32)]
    grads = [_problem()[1][0][:1].astype(np.float32)]
    theirs = _torch_run(lambda p: torch.optim.Adam(p, lr=1.0), weights, grads)
    return compare(
        theirs, _jax_run(optimizers.adam(1.0), weights, grads), _jax_run(optax.adam(1.0), weights, grads)
    )  # fmt: skip


def _draw_updates() -> Picture:
    """Error of one weight's update by step; constant gradients, so that the exact update is lr."""
    steps = 200
    grads = {"g": jnp.full((1,), 0.1)}

    def errors(tx):
        def step(state, _):
            updates, state = tx.update(grads, state, grads)
            return state, jnp.abs(updates["g"][0] + 1.0)

        return np.maximum(jax.lax.scan(step, tx.init(grads), None, steps)[1], 1e-8).tolist()

    return Picture(
        "Relative error of Adam's update in float32", "step", "relative error", list(range(1, steps + 1)),
        {"ours": errors(optimizers.adam(1.0)), "naive: optax.adam": errors(optax.adam(1.0))}, ylog=True,
    )  # fmt: skip


ROWS = (
    Row(
        id="O1",
        title="SGD with weight decay",
        compared="parameters after 300 steps of SGD, lr 0.05, momentum 0.9, decay 0.0005",
        explanation=(
            "torch.optim.SGD adds weight_decay times the parameter to the gradient before momentum. optax.sgd has no "
            "weight decay at all, and who does not look for it trains without."
        ),
        wrong="optax.sgd(lr, momentum=0.9)",
        right="optax.chain(optax.add_decayed_weights(0.0005), optax.sgd(lr, momentum=0.9))  # optimizers.sgd",
        tolerance=1e-12,
        reason="300 steps of doubles, relative to the movement",
        run=lambda: _sgd(optax.sgd(_LR, momentum=_MOMENTUM)),
    ),
    Row(
        id="O1M",
        title="Weight decay after momentum",
        compared="parameters after 300 steps of SGD, lr 0.05, momentum 0.9, decay 0.0005",
        explanation=(
            "Added after the momentum, the decay acts at once instead of through the buffer, ten times weaker in the "
            "long run: another algorithm (SGDW)."
        ),
        wrong="optax.chain(optax.trace(0.9), optax.add_decayed_weights(0.0005), optax.scale(-lr))",
        right="optax.chain(optax.add_decayed_weights(0.0005), optax.trace(0.9), optax.scale(-lr))",
        tolerance=1e-12,
        reason="300 steps of doubles, relative to the movement",
        run=lambda: _sgd(optax.chain(optax.trace(_MOMENTUM), optax.add_decayed_weights(_DECAY), optax.scale(-_LR))),
    ),
    Row(
        id="O1U",
        title="Weight decay without the learning rate",
        compared="parameters after 300 steps of SGD, lr 0.05, momentum 0.9, decay 0.0005",
        explanation=(
            "Chained after the whole optimizer, the decay is not multiplied by the learning rate, and a schedule no "
            "longer scales it."
        ),
        wrong="optax.chain(optax.sgd(lr, momentum=0.9), optax.add_decayed_weights(-0.0005))",
        right="optax.chain(optax.add_decayed_weights(0.0005), optax.sgd(lr, momentum=0.9))",
        tolerance=1e-12,
        reason="300 steps of doubles, relative to the movement",
        run=lambda: _sgd(optax.chain(optax.sgd(_LR, momentum=_MOMENTUM), optax.add_decayed_weights(-_DECAY))),
    ),
    Row(
        id="O1P",
        title="Which parameters decay",
        compared="parameters after 300 steps of SGD, lr 0.05, momentum 0.9, decay 0.0005",
        explanation=(
            "torch.optim.SGD(model.parameters(), weight_decay=...) decays every parameter, biases and BatchNorm's "
            "scale and bias included. JAX examples often mask all but the kernels."
        ),
        wrong="optax.add_decayed_weights(0.0005, mask=lambda p: jax.tree.map(lambda w: w.ndim > 1, p))",
        right="optax.add_decayed_weights(0.0005)",
        tolerance=1e-12,
        reason="300 steps of doubles, relative to the movement",
        run=lambda: _sgd(
            optax.chain(
                optax.add_decayed_weights(_DECAY, mask=lambda p: jax.tree.map(lambda w: w.ndim > 1, p)),
                optax.sgd(_LR, momentum=_MOMENTUM),
            )
        ),
    ),
    Row(
        id="O2",
        title="Adam's bias correction in float32",
        compared="Adam's first update over lr",
        explanation=(
            "optax computes 1 - b2**t in float32. At t = 1 that is 1 - 0.999, which has lost three of its seven "
            "digits. PyTorch computes it in double on the host; -expm1(t * log(b2)) is exact inside the compiled step."
        ),
        wrong="optax.adam(lr)  # 1 - b2**count, in float32",
        right="optimizers.adam(lr)  # -jnp.expm1(count * math.log(b2))",
        tolerance=5e-7,
        reason="four roundings of float32",
        run=_first_update,
        stable=False,
        picture=_draw_updates,
    ),
    Row(
        id="O2D",
        title="Adam's bias correction in float64",
        compared="parameters after 300 steps of Adam, lr 0.01",
        explanation="In double nothing is lost that counts: optax.adam follows torch.optim.Adam.",
        wrong="optax.adam(lr)  # under jax_enable_x64",
        right="optimizers.adam(lr)",
        tolerance=1e-10,
        reason="300 steps of doubles, relative to the movement",
        run=lambda: _adam(optax.adam(0.01), 0.0),
        naive_fails=False,
    ),
    Row(
        id="O3",
        title="Adam with weight decay",
        compared="parameters after 300 steps of Adam, lr 0.01, decay 0.01",
        explanation=(
            "torch.optim.Adam(weight_decay=...) adds the decay to the gradient, where the division by the running "
            "deviation takes most of it out again. optax.adamw decouples it: another algorithm, of the same name in "
            "many papers."
        ),
        wrong="optax.adamw(lr, weight_decay=0.01)",
        right="optimizers.adam(lr, weight_decay=0.01)",
        tolerance=1e-10,
        reason="300 steps of doubles, relative to the movement",
        run=lambda: _adam(optax.adamw(0.01, weight_decay=0.01), 0.01),
    ),
    Row(
        id="O3D",
        title="adamw's default",
        compared="parameters after 300 steps of Adam, lr 0.01, no decay asked for",
        explanation="optax.adamw decays by 1e-4 where nothing was said; torch.optim.Adam, and the lecture's, by 0.",
        wrong="optax.adamw(lr)  # weight_decay=1e-4",
        right="optimizers.adam(lr)",
        tolerance=1e-10,
        reason="300 steps of doubles, relative to the movement",
        run=lambda: _adam(optax.adamw(0.01), 0.0),
    ),
)
