"""The host's side of one phase of an epoch, training or evaluation: start it, wait for it, add up its metrics.

A phase is one compiled call on an accelerator, so that the host stands in no one's way. On the CPU it is a compiled
step called for each batch: there XLA runs the gradients of convolutions inside a loop many times slower than outside
(jax#12868), and a step takes long enough for a progress bar to be wanted.
"""

import collections
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from cifar_jax import steps
from cifar_jax.devices import compiler_options
from cifar_jax.errors import DivergedError
from cifar_jax.experiment import Experiment
from cifar_jax.losses import Metrics
from cifar_jax.sharding import place
from cifar_jax.state import TrainState

# Steps that may wait on the device while the host reads the metrics of an earlier one: enough to keep it busy.
_STEPS_IN_FLIGHT = 2


class Phases(NamedTuple):
    """The compiled phases of an experiment.

    Each gives metrics on the device, one step's or all steps' at once, as soon as their computation is under way.

    train: takes a state, which it donates, and an epoch numbered from 0; gives the state so far with the metrics.
    evaluate: takes a state.
    """

    train: Callable[[TrainState, int], Iterator[tuple[TrainState, Metrics]]]
    evaluate: Callable[[TrainState], Iterator[Metrics]]


def compile_evaluation(experiment: Experiment, *, whole: bool) -> Callable[[TrainState], Iterator[Metrics]]:
    """`Phases.evaluate`, as one call where `whole`, or as a call for each batch."""
    x = experiment
    parts = {"model": x.model, "transform": x.transform, "parallel": x.parallel}
    if whole:
        compiled = _compile(
            steps.eval_epoch, x.state.params, x.state.batch_stats, *x.test, batch_size=x.eval_batch_size, **parts
        )
        return lambda state: iter([compiled(state.params, state.batch_stats, *x.test)])
    order = np.arange(len(x.test.labels), dtype=np.int32)
    batches = unstack(
        steps.split_epoch(order, None, batch_size=x.eval_batch_size, sampler="shuffle", parallel=x.parallel)
    )
    compiled = _compile(steps.eval_step, x.state.params, x.state.batch_stats, *x.test, _spread(x, batches[0]), **parts)
    return lambda state: (compiled(state.params, state.batch_stats, *x.test, _spread(x, batch)) for batch in batches)


def compile_training(
    experiment: Experiment, *, whole: bool
) -> Callable[[TrainState, int], Iterator[tuple[TrainState, Metrics]]]:
    """`Phases.train`, as one call where `whole`, or as a call for each batch."""
    x = experiment
    parts = {"model": x.model, "tx": x.tx, "transform": x.transform, "parallel": x.parallel}
    cut = {"batch_size": x.batch_size, "sampler": x.sampler}
    if whole:
        compiled_epoch = _compile(steps.train_epoch, x.state, *x.train, *x.draw_epoch(0), **cut, **parts)

        def train_whole(state, epoch):
            yield compiled_epoch(state, *x.train, *x.draw_epoch(epoch))

        return train_whole

    compiled_step = _compile(steps.train_step, x.state, *x.train, _spread(x, epoch_batches(x, 0)[0]), **parts)

    def train_in_steps(state, epoch):
        for batch in epoch_batches(x, epoch):
            state, metrics = compiled_step(state, *x.train, _spread(x, batch))
            yield state, metrics

    return train_in_steps


def compile_phases(experiment: Experiment, *, whole: bool | None = None) -> Phases:
    """Both phases; `whole` None decides by the device."""
    if whole is None:
        whole = jax.default_backend() != "cpu"
    return Phases(compile_training(experiment, whole=whole), compile_evaluation(experiment, whole=whole))


def _compile(function, *arguments, **options):
    return function.lower(*arguments, **options).compile(compiler_options=compiler_options())


def _spread(experiment: Experiment, batch: steps.Batch) -> steps.Batch:
    """The batch cut over the devices; with one device it stays on the host, and the step takes it from there."""
    return batch if experiment.parallel is None else place(batch, experiment.parallel.rows)


def epoch_batches(experiment: Experiment, epoch: int) -> list[steps.Batch]:
    """The batches of an epoch of training, numbered from 0, one by one, on the host."""
    x = experiment
    cut = {"batch_size": x.batch_size, "sampler": x.sampler, "parallel": x.parallel}
    return unstack(steps.split_epoch(*x.draw_epoch(epoch), **cut))


def unstack(batches: steps.Batch) -> list[steps.Batch]:
    """The batches of an epoch, as `steps.split_epoch` gives them, one by one on the host."""
    batches = jax.device_get(batches)
    return [jax.tree.map(lambda array, i=i: array[i], batches) for i in range(len(batches.indices))]


class Totals:
    """Metrics of a phase so far, added up in double precision on the host."""

    def __init__(self):
        self.steps, self.loss_sum, self.correct, self.count = 0, 0.0, 0, 0

    def add(self, metrics: Metrics) -> None:
        """Adds the metrics of one step or of several (a leading axis of steps), which must be on the host."""
        self.steps += np.size(metrics.loss_sum)
        self.loss_sum += float(np.sum(metrics.loss_sum, dtype=np.float64))
        self.correct += int(np.sum(metrics.correct))
        self.count += int(np.sum(metrics.count))

    @property
    def loss(self) -> float:
        """Mean over images. (The lecture's slide averages batch means, in which a short last batch weighs too much.)"""
        return self.loss_sum / self.count

    @property
    def accuracy(self) -> float:
        """Percent."""
        return 100.0 * self.correct / self.count


def fetch(
    dispatched: Iterable[Metrics], check_stop: Callable[[], None], meanwhile: Callable[[], None] = lambda: None
) -> Iterator[Metrics]:
    """Metrics on the host, in order, while a few later steps are already on their way.

    `meanwhile` is called once, when the first step is on its way. Waits in short naps rather than inside the runtime,
    where Python could not react to a signal.
    """
    pending, started = collections.deque(), False
    for metrics in dispatched:
        pending.append(metrics)
        if not started:
            started = True
            meanwhile()
        if len(pending) > _STEPS_IN_FLIGHT:
            yield _wait(pending.popleft(), check_stop)
    while pending:
        yield _wait(pending.popleft(), check_stop)


def _wait(metrics: Metrics, check_stop: Callable[[], None]) -> Metrics:
    check_stop()
    while not metrics.loss_sum.is_ready():
        time.sleep(0.001)
        check_stop()
    return jax.device_get(metrics)


def train(
    phases: Phases,
    state: TrainState,
    epoch: int,
    *,
    check_stop: Callable[[], None] = lambda: None,
    on_images: Callable[[int], None] = lambda count: None,
    meanwhile: Callable[[], None] = lambda: None,
) -> tuple[TrainState, Totals]:
    """One epoch of training, numbered from 0; see `fetch` for `check_stop` and `meanwhile`.

    Raises:
      DivergedError: a loss became NaN or infinite.
    """
    totals = Totals()

    def dispatch():
        nonlocal state
        for new_state, metrics in phases.train(state, epoch):
            state = new_state
            yield metrics

    for metrics in fetch(dispatch(), check_stop, meanwhile):
        losses = np.atleast_1d(metrics.loss_sum)
        broken = np.flatnonzero(~np.isfinite(losses))
        if len(broken):
            loss = losses[broken[0]] / np.atleast_1d(metrics.count)[broken[0]]
            step = totals.steps + int(broken[0]) + 1
            raise DivergedError(f"The loss became {float(loss)} in epoch {epoch + 1}, step {step}")
        before = totals.count
        totals.add(metrics)
        on_images(totals.count - before)
    return state, totals


def evaluate(
    phases_evaluate: Callable[[TrainState], Iterator[Metrics]],
    state: TrainState,
    *,
    check_stop: Callable[[], None] = lambda: None,
    on_images: Callable[[int], None] = lambda count: None,
) -> Totals:
    """Loss and accuracy over the test images; each counts once."""
    totals = Totals()
    for metrics in fetch(phases_evaluate(state), check_stop):
        before = totals.count
        totals.add(metrics)
        on_images(totals.count - before)
    return totals
