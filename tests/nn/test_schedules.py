import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cifar_jax.devices.select import options_for_one_run
from cifar_jax.nn.schedules import by_step, learning_rates

EPOCHS = 30
SCHEDULES = {
    "constant": {},
    "step": {"step_size": 10, "gamma": 0.5},
    "step3": {"step_size": 3, "gamma": 0.1},
    "cosine": {"t_max": 30},
    "cosine7": {"t_max": 7},
}


def torch_rates(torch, name, options, calls_per_epoch):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.005)
    scheduler = None
    if name.startswith("step"):
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, **options)
    elif name.startswith("cosine"):
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=options["t_max"])
    rates = []
    for _ in range(EPOCHS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for _ in range(calls_per_epoch if scheduler else 0):
            scheduler.step()
    return np.array(rates)


CASES = [(name, calls) for name in SCHEDULES for calls in (1, 2)]


def our_rates(name, calls_per_epoch):
    kind = name.rstrip("37")
    return learning_rates(kind, lr=0.005, epochs=EPOCHS, calls_per_epoch=calls_per_epoch, **SCHEDULES[name])


@pytest.mark.parametrize(("name", "calls_per_epoch"), CASES)
def test_every_epoch_has_torchs_rate(torch, name, calls_per_epoch):
    expected = torch_rates(torch, name, SCHEDULES[name], calls_per_epoch)
    np.testing.assert_allclose(our_rates(name, calls_per_epoch), expected, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_every_step_has_torchs_rate(torch, x64):
    """All cases, 30 epochs of 1 to 400 steps, and of every seventh number to 1000, under jit, in double precision."""
    rates = np.stack([our_rates(*case) for case in CASES], axis=1)
    expected = np.stack([torch_rates(torch, name, SCHEDULES[name], calls) for name, calls in CASES], axis=1)

    # A hundred lengths to a compilation, each a constant in it, as in training.
    @functools.partial(jax.jit, static_argnums=0, compiler_options=options_for_one_run())
    def worst(lengths, counts):
        errors = []
        for steps_per_epoch in lengths:
            lr = by_step(rates, steps_per_epoch=steps_per_epoch)(counts[: EPOCHS * steps_per_epoch])
            errors.append(jnp.max(jnp.abs(lr.reshape(EPOCHS, -1, len(CASES)) - expected[:, None])))
        return jnp.max(jnp.stack(errors))

    lengths = (*range(1, 401), *range(403, 1001, 7))
    for first in range(0, len(lengths), 100):
        assert float(worst(lengths[first : first + 100], jnp.arange(EPOCHS * 1000))) <= 1e-12


def test_optax_staircase_drops_late():
    """The naive port, at the lecture's numbers with 390 steps an epoch: the test above can fail."""
    schedule = optax.exponential_decay(0.005, transition_steps=3900, decay_rate=0.5, staircase=True)
    assert float(jax.jit(schedule)(3900)) == pytest.approx(0.005)
    rates = learning_rates("step", lr=0.005, epochs=30, step_size=10, gamma=0.5)
    ours = jax.jit(by_step(rates, steps_per_epoch=390))
    assert [float(ours(count)) for count in (3899, 3900)] == [pytest.approx(0.005), pytest.approx(0.0025)]


def test_the_slides_two_calls_per_epoch():
    step = learning_rates("step", lr=1.0, epochs=30, step_size=10, gamma=0.5, calls_per_epoch=2)
    assert [int(epoch) for epoch in np.flatnonzero(np.diff(step)) + 1] == [5, 10, 15, 20, 25]
    cosine = learning_rates("cosine", lr=1.0, epochs=30, t_max=30, calls_per_epoch=2)
    assert cosine[15] == pytest.approx(0, abs=1e-15)
    assert cosine[20] > cosine[16] > cosine[15]


def test_types_follow_x64(x64):
    schedule = by_step(learning_rates("constant", lr=0.1, epochs=2), steps_per_epoch=3)
    assert jax.jit(schedule)(jnp.zeros((), jnp.int32)).dtype == jnp.float64


def test_counts_past_the_end_keep_the_last_rate():
    schedule = by_step(np.array([1.0, 0.5]), steps_per_epoch=3)
    assert [float(schedule(c)) for c in (0, 2, 3, 5, 6, 99)] == [1, 1, 0.5, 0.5, 0.5, 0.5]


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"schedule.t_max must be an integer of at least 1 .* got None"):
        learning_rates("cosine", lr=1.0, epochs=3)
    with pytest.raises(ValueError, match="schedule.name must be one of .* got 'linear'"):
        learning_rates("linear", lr=1.0, epochs=3)
