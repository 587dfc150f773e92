"""optax's staircase drops one step late under jit: row S1 of the ledger, with JAX and optax alone.

python examples/optax_staircase.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

STEPS_PER_EPOCH, EPOCHS, STEP_SIZE, LR, GAMMA = 390, 30, 10, 0.005, 0.5
DROP = STEP_SIZE * STEPS_PER_EPOCH  # the first update of the eleventh epoch: PyTorch's StepLR has halved the rate

staircase = optax.exponential_decay(LR, transition_steps=DROP, decay_rate=GAMMA, staircase=True)

# What is right under jit too: the rates of the epochs, made on the host, looked up by a whole-number division.
rates = LR * GAMMA ** (np.arange(EPOCHS) // STEP_SIZE)


def table(count):
    """The rate of the epoch that this update belongs to."""
    return jnp.asarray(rates)[jnp.minimum(count // STEPS_PER_EPOCH, EPOCHS - 1)]


print(f"{'update':>6}  {'StepLR':>8}  {'optax':>8}  {'optax, jit':>10}  {'table, jit':>10}")
for update in range(DROP - 1, DROP + 3):
    count = jnp.asarray(update)
    print(
        f"{update:>6}  {rates[update // STEPS_PER_EPOCH]:8.6f}  {staircase(count):8.6f}  "
        f"{jax.jit(staircase)(count):10.6f}  {jax.jit(table)(count):10.6f}"
    )
