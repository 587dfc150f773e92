"""SGD and Adam as PyTorch means them: weight decay joins the gradient, on every parameter, before anything else."""

import math

import jax
import jax.numpy as jnp
import optax

OPTIMIZERS = ("sgd", "adam")


def sgd(schedule: optax.ScalarOrSchedule, *, momentum: float = 0.0, weight_decay: float = 0.0):
    """`buffer = momentum * buffer + gradient + weight_decay * parameter`, then `parameter -= lr * buffer`.

    Source: torch.optim.SGD (dampening 0, no Nesterov).
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.trace(decay=momentum) if momentum else optax.identity(),
        optax.scale_by_learning_rate(schedule),
    )


def adam(
    schedule: optax.ScalarOrSchedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
):
    """Adam with coupled weight decay. (optax.adamw decouples it, which is another algorithm.)

    Source: torch.optim.Adam; Kingma and Ba, 2015 (arXiv:1412.6980).
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.scale_by_learning_rate(schedule),
    )


def scale_by_adam(*, b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Gradients over their running deviation, with exact bias correction.

    optax computes `1 - b2 ** t` in float32, which cancels: 8e-5 relative at the first step. PyTorch computes it in
    double on the host; here `-expm1(t * log(b2))` gives it to float32's last digits inside the compiled step.
    """

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(count=jnp.zeros((), jnp.int32), mu=zeros, nu=zeros)

    def update(grads, state, params=None):
        del params
        count = optax.safe_increment(state.count)
        mu = jax.tree.map(lambda m, g: b1 * m + (1.0 - b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1.0 - b2) * g * g, state.nu, grads)

        def direction(m, v):
            return m / _bias_correction(b1, count, m.dtype) / (
                jnp.sqrt(v / _bias_correction(b2, count, v.dtype)) + eps
            )  # fmt: skip

        return jax.tree.map(direction, mu, nu), optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformation(init, update)


def _bias_correction(decay: float, count, dtype):
    """`1 - decay ** count` without cancellation."""
    if decay == 0.0:
        return jnp.ones((), dtype)
    return -jnp.expm1(count.astype(dtype) * math.log(decay))
