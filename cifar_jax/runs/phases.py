"""The host's side of one phase of an epoch, training or evaluation: start it, wait for it, add up its metrics.

A phase is one compiled call on an accelerator, so that the host stands in no one's way. It is a compiled step called
for each batch where the images stay in host memory, and on the CPU: there XLA runs the gradients of convolutions inside
a loop many times slower than outside (jax#12868), and a step takes long enough for a progress bar to be wanted.
"""

import collections
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from cifar_jax.data.dataset import Split
from cifar_jax.devices.select import compiler_options
from cifar_jax.devices.sharding import place
from cifar_jax.errors import DivergedError
from cifar_jax.nn.layers import running_stats
from cifar_jax.nn.losses import Metrics
from cifar_jax.runs import steps
from cifar_jax.runs.build import Drawn, Experiment
from cifar_jax.runs.state import TrainState

# Steps that may wait on the device while the host reads the metrics of an earlier one: enough to keep it busy.
_STEPS_IN_FLIGHT = 2


class Phases(NamedTuple):
    """The compiled phases of an experiment, whatever its seed.

    Each gives metrics on the device, one step's or all steps' at once, as soon as their computation is under way.

    train: takes a state, which it donates, and what the experiment drew for an epoch; gives the state so far with the
      metrics.
    evaluate: takes parameters and the statistics to use (`layers.running_stats`); by the name of the split.
    """

    train: Callable[[TrainState, Drawn], Iterator[tuple[TrainState, Metrics]]]
    evaluate: dict[str, Callable[[Any, Any], Iterator[Metrics]]]


def compile_evaluation(experiment: Experiment, split: Split, *, whole: bool) -> Callable[[Any, Any], Iterator[Metrics]]:
    """Evaluation on `split`, as one call where `whole`, or as a call for each batch."""
    x = experiment
    variables = (x.state.params, running_stats(x.state.batch_stats))
    parts = {"model": x.model, "transform": x.transform, "parallel": x.parallel}
    if whole:
        compiled = _compile(steps.eval_epoch, *variables, *split, batch_size=x.eval_batch_size, **parts)
        return lambda params, batch_stats: iter([compiled(params, batch_stats, *split)])
    order = np.arange(len(split.labels), dtype=np.int32)
    cut = {"batch_size": x.eval_batch_size, "sampler": "shuffle", "parallel": x.parallel}
    batches = unstack(steps.split_epoch(order, None, **cut))
    here, first = next(_feed(x, split, batches[:1]))
    compiled = _compile(steps.eval_step, *variables, *here, first, **parts)

    def evaluate_in_steps(params, batch_stats):
        for here, batch in _feed(x, split, batches):
            yield compiled(params, batch_stats, *here, batch)

    return evaluate_in_steps


def compile_training(
    experiment: Experiment, *, whole: bool
) -> Callable[[TrainState, Drawn], Iterator[tuple[TrainState, Metrics]]]:
    """`Phases.train`, as one call where `whole`, or as a call for each batch."""
    x = experiment
    parts = {"model": x.model, "tx": x.tx, "transform": x.transform, "parallel": x.parallel}
    if whole:
        cut = {"batch_size": x.batch_size, "sampler": x.sampler}
        compiled_epoch = _compile(steps.train_epoch, x.state, *x.train, *x.draw_epoch(0), **cut, **parts)

        def train_whole(state, drawn):
            yield compiled_epoch(state, *x.train, *drawn)

        return train_whole

    here, first = next(_feed(x, x.train, epoch_batches(x, x.draw_epoch(0))[:1]))
    compiled_step = _compile(steps.train_step, x.state, *here, first, **parts)

    def train_in_steps(state, drawn):
        for here, batch in _feed(x, x.train, epoch_batches(x, drawn)):
            state, metrics = compiled_step(state, *here, batch)
            yield state, metrics

    return train_in_steps


def compile_phases(experiment: Experiment, *, whole: bool | None = None) -> Phases:
    """All phases; `whole` None decides by the device and by where the images are."""
    x = experiment
    if whole is None:
        whole = whole_by_default(x)
    splits = {"test": x.test} if x.holdout is None else {"test": x.test, "holdout": x.holdout}
    return Phases(
        compile_training(x, whole=whole),
        {name: compile_evaluation(x, split, whole=whole) for name, split in splits.items()},
    )


def whole_by_default(experiment: Experiment) -> bool:
    """Whether a phase is best made one call: on an accelerator that holds the images."""
    return experiment.on_device and jax.default_backend() != "cpu"


def _compile(function, *arguments, **options):
    return function.lower(*arguments, **options).compile(compiler_options=compiler_options(options["model"].dtype))


def _feed(experiment: Experiment, split: Split, batches: Iterable[steps.Batch]) -> Iterator[tuple[Split, steps.Batch]]:
    """Each batch with the images among which it names its own: the whole split, or from host memory the batch's alone.

    From the host, a batch is on its way to the device before the one ahead of it is asked for.
    """
    parallel = experiment.parallel
    if experiment.on_device:
        # To a single device, the step takes it along.
        yield from ((split, batch if parallel is None else place(batch, parallel.rows)) for batch in batches)
        return

    def send(batch):
        own = Split(split.images[batch.indices], split.labels[batch.indices])
        return place((own, batch._replace(indices=None)), parallel and parallel.rows)

    ahead = None
    for batch in batches:
        ahead, ready = send(batch), ahead
        if ready is not None:
            yield ready
    if ahead is not None:
        yield ahead


def epoch_batches(experiment: Experiment, drawn: Drawn) -> list[steps.Batch]:
    """The batches of an epoch of training, as the experiment drew it, one by one, on the host."""
    x = experiment
    return unstack(steps.split_epoch(*drawn, batch_size=x.batch_size, sampler=x.sampler, parallel=x.parallel))


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
    drawn: Drawn,
    *,
    check_stop: Callable[[], None] = lambda: None,
    on_images: Callable[[int], None] = lambda count: None,
    meanwhile: Callable[[], None] = lambda: None,
) -> tuple[TrainState, Totals]:
    """One epoch of training on what the experiment drew for it; see `fetch` for `check_stop` and `meanwhile`.

    Raises:
      DivergedError: a loss became NaN or infinite.
    """
    totals = Totals()

    def dispatch():
        nonlocal state
        for new_state, metrics in phases.train(state, drawn):
            state = new_state
            yield metrics

    for metrics in fetch(dispatch(), check_stop, meanwhile):
        losses = np.atleast_1d(metrics.loss_sum)
        broken = np.flatnonzero(~np.isfinite(losses))
        if len(broken):
            loss = losses[broken[0]] / np.atleast_1d(metrics.count)[broken[0]]
            raise DivergedError(f"The loss became {float(loss)} in step {totals.steps + int(broken[0]) + 1}")
        before = totals.count
        totals.add(metrics)
        on_images(totals.count - before)
    return state, totals


def evaluate(
    dispatched: Iterable[Metrics],
    *,
    check_stop: Callable[[], None] = lambda: None,
    on_images: Callable[[int], None] = lambda count: None,
) -> Totals:
    """Adds up what one of `Phases.evaluate` gives; each image counts once."""
    totals = Totals()
    for metrics in fetch(dispatched, check_stop):
        before = totals.count
        totals.add(metrics)
        on_images(totals.count - before)
    return totals
