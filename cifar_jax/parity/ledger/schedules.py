"""Rows S: the learning rate of every step."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from cifar_jax.nn import schedules
from cifar_jax.parity import twin
from cifar_jax.parity.ledger.page import Picture
from cifar_jax.parity.ledger.row import Measurement, Row, compare, compare_facts

_EPOCHS, _LR = 30, 0.005
_LENGTHS = range(351, 401)
_STEPS = 390  # of an epoch of 50,000 images in batches of 128, the last one dropped


def _torch_rates(name: str, *, epochs: int = _EPOCHS, calls_per_epoch: int = 1, **options) -> np.ndarray:
    """The rate of each epoch, from torch's optimizer while its scheduler is stepped."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=_LR)
    scheduler = twin.create_scheduler(name, optimizer, **options)
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for _ in range(calls_per_epoch):
            scheduler.step()
    return np.array(rates)


def _our_rates(name: str, *, epochs: int = _EPOCHS, **options) -> np.ndarray:
    """The rate of each epoch's first step, from the schedule that training compiles, at one step an epoch."""
    return _sampled(_our_schedule(name, 1, epochs=epochs, **options), range(epochs))


def _our_schedule(name: str, steps_per_epoch: int, *, epochs: int = _EPOCHS, **options) -> optax.Schedule:
    rates = schedules.learning_rates(name, lr=_LR, epochs=epochs, **options)
    return schedules.by_step(rates, steps_per_epoch=steps_per_epoch)


def _sampled(schedule: optax.Schedule, counts: Sequence[int]) -> np.ndarray:
    """A schedule's values under jit, as the compiled training step computes them: count by count."""
    compiled = jax.jit(schedule)
    return np.array([compiled(jnp.asarray(count, jnp.int32)) for count in counts])


def _staircase(steps_per_epoch: int) -> optax.Schedule:
    return optax.exponential_decay(_LR, transition_steps=10 * steps_per_epoch, decay_rate=0.5, staircase=True)


def _drops() -> tuple[range, tuple[np.ndarray, ...]]:
    """Rates of the steps around the first drop, in units of the base rate."""
    counts = range(10 * _STEPS - 5, 10 * _STEPS + 6)
    theirs = _torch_rates("step")[np.array(counts) // _STEPS]
    ours = _sampled(_our_schedule("step", _STEPS), counts)
    return counts, tuple(side / _LR for side in (theirs, ours, _sampled(_staircase(_STEPS), counts)))


def _late_drop() -> Measurement:
    _, sides = _drops()
    eager = float(_staircase(_STEPS)(10 * _STEPS)) / _LR
    return compare(*sides, note=f"at the same count without jit, optax gives {eager:g}")


def _draw_drop() -> Picture:
    counts, sides = _drops()
    names = ("torch", "ours", "naive: optax under jit")
    return Picture(
        f"The first drop, {_STEPS} steps an epoch", "update", "learning rate over base rate", list(counts),
        {name: side.tolist() for name, side in zip(names, sides, strict=True)}, steps=True,
    )  # fmt: skip


def _late_lengths() -> Measurement:
    """How many of fifty epoch lengths drop late, with a step size of 10 epochs."""

    def late(make):
        @jax.jit
        def rates(epochs):
            return jnp.stack([make(n)(epochs * n) for n in _LENGTHS])

        return int(np.sum(np.asarray(rates(jnp.int32(10))) > 0.75 * _LR))

    return compare(0, late(lambda n: _our_schedule("step", n)), late(_staircase))


def _cosine_sides(epochs: int, t_max: int) -> tuple[np.ndarray, ...]:
    """Rates of every step, in units of the base rate; 20 steps an epoch."""
    counts = np.arange(epochs * 20)
    with jax.enable_x64(True):
        ours = _our_schedule("cosine", 20, epochs=epochs, t_max=t_max)
        naive = optax.cosine_decay_schedule(_LR, decay_steps=t_max * 20)
        theirs = np.repeat(_torch_rates("cosine", epochs=epochs, t_max=t_max), 20)
        return tuple(np.asarray(side) / _LR for side in (theirs, jax.jit(ours)(counts), jax.jit(naive)(counts)))


def _draw_cosine(epochs: int, t_max: int, title: str) -> Picture:
    sides = _cosine_sides(epochs, t_max)
    names = ("torch", "ours", "naive: optax")
    return Picture(
        title, "epoch", "learning rate over base rate", (np.arange(epochs * 20) / 20).tolist(),
        {name: side.tolist() for name, side in zip(names, sides, strict=True)}, steps=True,
    )  # fmt: skip


def _twice(name: str, **options) -> tuple[np.ndarray, ...]:
    """Rates of 30 epochs with scheduler.step() twice an epoch; naive: once. In units of the base rate."""
    with jax.enable_x64(True):
        theirs = _torch_rates(name, calls_per_epoch=2, **options)
        ours, naive = (_our_rates(name, calls_per_epoch=calls, **options) for calls in (2, 1))
    return theirs / _LR, ours / _LR, naive / _LR


def _draw_twice(name: str, title: str, **options) -> Picture:
    names = ("torch, twice an epoch", "ours, calls_per_epoch=2", "naive: once an epoch")
    sides = _twice(name, **options)
    return Picture(
        title, "epoch", "learning rate over base rate", list(range(1, _EPOCHS + 1)),
        {label: side.tolist() for label, side in zip(names, sides, strict=True)}, steps=True,
    )  # fmt: skip


def _types() -> Measurement:
    """Type of the compiled rate under jax_enable_x64, and how far it is from the double."""
    with jax.enable_x64(True):
        count = jnp.asarray(20, jnp.int32)
        ours = jax.jit(_our_schedule("step", 1))(count)
        naive = jax.jit(_staircase(1))(count)
        theirs = _torch_rates("step")[20]
        note = f"the naive rate of epoch 21 is off by {abs(float(naive) / theirs - 1):.0e} of itself"
        return compare_facts(str(np.asarray(theirs).dtype), str(ours.dtype), str(naive.dtype), note=note)


ROWS = (
    Row(
        id="S1",
        title="StepLR as optax's staircase",
        compared=f"rate over base rate at updates {10 * _STEPS - 5} to {10 * _STEPS + 5}, {_STEPS} steps an epoch",
        explanation=(
            "Under jit, exponential_decay(staircase=True) turns count / transition_steps into a product with a rounded "
            "reciprocal; 3900 / 3900 comes out just below 1, and the floor of that is 0. The drop comes one step late. "
            "Without jit it is right, so a test that only calls the schedule does not see it. "
            "examples/optax_staircase.py reproduces it."
        ),
        wrong="schedule = optax.exponential_decay(lr, 10 * steps_per_epoch, decay_rate=0.5, staircase=True)",
        right=(
            "rates = learning_rates('step', lr=lr, epochs=30, step_size=10, gamma=0.5)\n"
            "schedule = by_step(rates, steps_per_epoch=steps_per_epoch)"
        ),
        tolerance=1e-7,
        reason="one rounding of float32",
        run=_late_drop,
        picture=_draw_drop,
    ),
    Row(
        id="S1N",
        title="How often the staircase is late",
        compared="epoch lengths from 351 to 400 steps whose first drop is late",
        explanation=(
            "Whether the rounded reciprocal falls short depends on the number of steps. From 21 to 1000 steps it does "
            "for 111 of 980; 390 is one, and the lecture's 250 is not."
        ),
        wrong="optax.exponential_decay(lr, 10 * n, decay_rate=0.5, staircase=True)  # n steps an epoch",
        right="by_step(rates, steps_per_epoch=n)  # whole numbers: count // n",
        tolerance=0,
        reason="a count",
        run=_late_lengths,
    ),
    Row(
        id="S2",
        title="Cosine, by epoch or by step",
        compared="rate over base rate at every step of 30 epochs, T_max = 30",
        explanation=(
            "CosineAnnealingLR is stepped once an epoch in the lecture, so the rate is constant within one. optax's "
            "counts updates and falls within the epoch."
        ),
        wrong="optax.cosine_decay_schedule(lr, decay_steps=30 * steps_per_epoch)",
        right="by_step(learning_rates('cosine', lr=lr, epochs=30, t_max=30), steps_per_epoch=steps_per_epoch)",
        tolerance=1e-12,
        reason="torch's recursion over 30 epochs in double",
        run=lambda: compare(*_cosine_sides(30, 30)),
        picture=lambda: _draw_cosine(30, 30, "Cosine over 30 epochs"),
    ),
    Row(
        id="S2T",
        title="Cosine after T_max",
        compared="rate over base rate at every step of 30 epochs, T_max = 10",
        explanation=(
            "CosineAnnealingLR goes on along the cosine and climbs back to the base rate at twice T_max. optax's stays "
            "at 0: the network stops learning."
        ),
        wrong="optax.cosine_decay_schedule(lr, decay_steps=10 * steps_per_epoch)",
        right="by_step(learning_rates('cosine', lr=lr, epochs=30, t_max=10), steps_per_epoch=steps_per_epoch)",
        tolerance=1e-12,
        reason="torch's recursion over 30 epochs in double",
        run=lambda: compare(*_cosine_sides(30, 10)),
        picture=lambda: _draw_cosine(30, 10, "Cosine with T_max = 10 over 30 epochs"),
    ),
    Row(
        id="S3",
        title="The slide's two calls: StepLR",
        compared="rate over base rate of each of 30 epochs, step_size 10",
        explanation=(
            "The slide calls scheduler.step() inside the loop over the train and the test phase: twice an epoch. "
            "StepLR(10) then halves the rate every five epochs and ends at 1/32 instead of 1/4. PyTorch's "
            "documentation calls it once an epoch, which is the default here."
        ),
        wrong="for phase in ['train', 'test']:\n    ...\n    scheduler.step()  # twice an epoch",
        right="learning_rates('step', lr=lr, epochs=30, step_size=10, gamma=0.5, calls_per_epoch=2)",
        tolerance=1e-12,
        reason="torch's recursion over 30 epochs in double",
        run=lambda: compare(*_twice("step", step_size=10, gamma=0.5)),
        picture=lambda: _draw_twice("step", "StepLR, stepped once or twice an epoch", step_size=10, gamma=0.5),
    ),
    Row(
        id="S3C",
        title="The slide's two calls: cosine",
        compared="rate over base rate of each of 30 epochs, T_max = 30",
        explanation=(
            "Stepped twice an epoch, the cosine reaches 0 at epoch 16 and climbs back to almost the base rate at the "
            "end of the run."
        ),
        wrong="for phase in ['train', 'test']:\n    ...\n    scheduler.step()  # twice an epoch",
        right="learning_rates('cosine', lr=lr, epochs=30, t_max=30, calls_per_epoch=2)",
        tolerance=1e-12,
        reason="torch's recursion over 30 epochs in double",
        run=lambda: compare(*_twice("cosine", t_max=30)),
        picture=lambda: _draw_twice("cosine", "Cosine, stepped once or twice an epoch", t_max=30),
    ),
    Row(
        id="S4",
        title="Type of the rate in float64",
        compared="type of the compiled rate under jax_enable_x64",
        explanation=(
            "Some optax schedules compute in float32 even under jax_enable_x64. A run in double then carries a rate "
            "that is off by 1e-8, enough to break a comparison at 1e-10."
        ),
        wrong="optax.exponential_decay(lr, steps, decay_rate=0.5, staircase=True)  # float32",
        right="jnp.asarray(rates)[epoch]  # rates is float64",
        tolerance=0,
        reason="types are equal or not",
        run=_types,
    ),
)
