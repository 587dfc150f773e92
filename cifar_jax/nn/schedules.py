"""The learning rate of every step, with PyTorch's meaning: it changes between epochs, never within one.

The rates of all epochs are worked out on the host in double precision and looked up by the step. A formula in jitted
float32 is not enough: `optax.exponential_decay(staircase=True)` drops one step late for many epoch lengths, since
`count / transition_steps` comes out just below a whole number.
"""

import math

import jax.numpy as jnp
import numpy as np
import optax

SCHEDULES = ("constant", "step", "cosine")


def learning_rates(
    name: str,
    *,
    lr: float,
    epochs: int,
    step_size: int = 10,
    gamma: float = 0.5,
    t_max: int | None = None,
    calls_per_epoch: int = 1,
) -> np.ndarray:
    """The learning rate of each epoch.

    Args:
      name: "constant"; "step", `lr * gamma ** (t // step_size)` (torch's StepLR); or "cosine",
        `lr * (1 + cos(pi * t / t_max)) / 2`, which climbs back after `t_max` (torch's CosineAnnealingLR).
      lr: the base rate, of epoch 0.
      epochs: how many epochs.
      step_size: calls between two drops of "step".
      gamma: factor of each drop of "step".
      t_max: calls until "cosine" reaches 0.
      calls_per_epoch: how often `scheduler.step()` is called in an epoch: t is `epoch * calls_per_epoch`. 1 as in
        PyTorch's documentation; 2 is what the lecture's slide does, where the call stands inside the loop over the
        train and the test phase.

    Returns:
      float64 `[epochs]`.

    Raises:
      ValueError: an unknown name, or "cosine" without `t_max`.

    Source: torch.optim.lr_scheduler.StepLR, CosineAnnealingLR.

    >>> learning_rates("step", lr=0.4, epochs=5, step_size=2, gamma=0.5).tolist()
    [0.4, 0.4, 0.2, 0.2, 0.1]
    """
    calls = np.arange(epochs) * calls_per_epoch
    if name == "constant":
        return np.full(epochs, lr, np.float64)
    if name == "step":
        return lr * gamma ** (calls // step_size).astype(np.float64)
    if name == "cosine":
        if t_max is None:
            raise ValueError("schedule.t_max must be an integer of at least 1 with schedule.name='cosine', got None.")
        return lr * (1.0 + np.cos(math.pi * calls / t_max)) / 2.0
    raise ValueError(f"schedule.name must be one of {SCHEDULES}, got {name!r}.")


def by_step(rates: np.ndarray, *, steps_per_epoch: int) -> optax.Schedule:
    """The optax schedule that takes the count of updates made so far to the rate of its epoch.

    float64 under `jax_enable_x64`, float32 otherwise. Counts past the last epoch keep its rate.
    """

    def schedule(count):
        epoch = jnp.minimum(count // steps_per_epoch, len(rates) - 1)
        return jnp.asarray(rates)[epoch]

    return schedule
