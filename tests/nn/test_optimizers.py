import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cifar_jax.nn import optimizers

STEPS = 300


def torch_run(torch, create, weights, grads):
    parameters = [torch.nn.Parameter(torch.tensor(w)) for w in weights]
    optimizer = create(parameters)
    for step in range(len(grads[0])):
        for parameter, g in zip(parameters, grads, strict=True):
            parameter.grad = torch.tensor(g[step])
        optimizer.step()
    return [p.detach().numpy() for p in parameters]


def our_run(tx, weights, grads):
    def step(carry, g):
        params, opt_state = carry
        updates, opt_state = tx.update(g, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    params = [jnp.asarray(w) for w in weights]
    return jax.lax.scan(step, (params, tx.init(params)), [jnp.asarray(g) for g in grads])[0][0]


@pytest.fixture
def problem(rng):
    """A matrix and a vector, and gradients that are small beside them, so that weight decay shows."""
    shapes = [(4, 5), (5,)]
    return [rng.normal(size=s) for s in shapes], [0.05 * rng.normal(size=(STEPS, *s)) for s in shapes]


def error(ours, theirs):
    return max(np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.0005, 0.1])
def test_sgd_follows_torch(torch, x64, problem, momentum, weight_decay):
    """1e-13: 300 steps of double rounding."""
    options = {"momentum": momentum, "weight_decay": weight_decay}
    theirs = torch_run(torch, lambda p: torch.optim.SGD(p, lr=0.05, **options), *problem)
    assert error(our_run(optimizers.sgd(0.05, **options), *problem), theirs) < 1e-13
    if momentum and weight_decay:
        after = optax.chain(optax.trace(momentum), optax.add_decayed_weights(weight_decay), optax.scale(-0.05))
        assert error(our_run(after, *problem), theirs) > 1e-5


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.99)])
def test_adam_follows_torch(torch, x64, problem, betas, weight_decay):
    options = {"eps": 1e-8, "weight_decay": weight_decay}
    theirs = torch_run(torch, lambda p: torch.optim.Adam(p, lr=0.01, betas=betas, **options), *problem)
    ours = our_run(optimizers.adam(0.01, b1=betas[0], b2=betas[1], **options), *problem)
    assert error(ours, theirs) < 1e-12
    if weight_decay:
        decoupled = our_run(optax.adamw(0.01, *betas, **options), *problem)
        assert error(decoupled, theirs) > 1e-2


def test_adams_first_steps_in_float32(torch, problem):
    """Bias correction to float32's last digits, where optax's cancels. The update itself is compared, over lr."""
    weights = [np.zeros_like(w, np.float32) for w in problem[0]]
    grads = [g[:1].astype(np.float32) for g in problem[1]]
    theirs = torch_run(torch, lambda p: torch.optim.Adam(p, lr=1.0), weights, grads)
    assert error(our_run(optimizers.adam(1.0), weights, grads), theirs) < 5e-7
    assert error(our_run(optax.adam(1.0), weights, grads), theirs) > 5e-6


def test_a_schedule_counts_updates(problem):
    weights, grads = problem
    tx = optimizers.sgd(lambda count: jnp.where(count < 2, 1.0, 0.0))
    expected = [w - g[0] - g[1] for w, g in zip(weights, grads, strict=True)]
    assert error(our_run(tx, weights, grads), expected) < 1e-6
