"""The host's side of a run: build what the config names, then epochs of training and evaluation."""

import collections
import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from cifar_jax import optimizers, schedules, steps, torch_random
from cifar_jax.batch_norm import RULES
from cifar_jax.checkpoint import Checkpoints, best_epoch
from cifar_jax.config import validate
from cifar_jax.data import load_dataset
from cifar_jax.data.cache import cache_folder
from cifar_jax.data.dataset import Dataset, Split, take
from cifar_jax.data.order import cut, epoch_order, split_batches, steps_per_epoch
from cifar_jax.devices import compiler_options, describe, keep_compilations, select_devices
from cifar_jax.errors import DivergedError, InputError
from cifar_jax.interrupt import Interrupted
from cifar_jax.losses import Metrics
from cifar_jax.models import CNN, create_model
from cifar_jax.progress import duration, epoch_bar, epoch_line
from cifar_jax.state import TrainState, create_state
from cifar_jax.transforms import Transform
from cifar_jax.workdir import RunLog, check_workdir, read_config

# Steps that may wait on the device while the host reads the metrics of an earlier one: enough to keep it busy.
_STEPS_IN_FLIGHT = 2


class Result(NamedTuple):
    """What a run came to: the best epoch's and the last one's row of metrics, and all of them."""

    best: dict
    final: dict
    history: list[dict]


class Experiment(NamedTuple):
    """Everything that a config names, built. Data sets lie on the device.

    draw_epoch: takes an epoch, numbered from 0, to the order of its images and, where the steps do not draw them, which
      of these are flipped; the same for an epoch whenever it is asked.
    """

    model: CNN
    tx: optax.GradientTransformation
    transform: Transform
    rates: np.ndarray
    train: Split
    test: Split
    batch_size: int
    eval_batch_size: int
    sampler: str
    draw_epoch: Callable[[int], tuple[np.ndarray, np.ndarray | None]]
    state: TrainState


def prepare(config: ml_collections.ConfigDict, workdir: Path) -> Dataset:
    """Refuses what cannot run, chooses the devices and loads the data. Nothing is compiled or written.

    Raises:
      InputError: the first thing that is wrong.
    """
    validate(config)
    check_workdir(workdir, config)
    jax.config.update("jax_enable_x64", config.dtype == "float64")
    print(f"Devices: {describe(select_devices(config.platform))}", flush=True)
    with contextlib.suppress(OSError):  # no home folder: compile every time
        keep_compilations(cache_folder() / "xla")
    data = config.data
    dataset = take(load_dataset(data.name, data.dir), data.limit_train, data.limit_test)
    if steps_per_epoch(len(dataset.train.labels), data.batch_size, data.sampler) == 0:
        raise InputError(
            f"data.batch_size must be at most the number of training images, {len(dataset.train.labels)}, with "
            f"data.sampler={data.sampler}, got {data.batch_size}."
        )
    print(
        f"Data: {data.name}, {len(dataset.train.labels):,} training and {len(dataset.test.labels):,} test images, "
        f"{len(dataset.class_names)} classes",
        flush=True,
    )
    return dataset


def build(config: ml_collections.ConfigDict, dataset: Dataset) -> Experiment:
    """Network, optimizer, transforms, data on the device and a fresh state, from a config that was validated."""
    data, norm, optimizer, schedule = config.data, config.norm, config.optimizer, config.schedule
    rule = RULES[norm.rule]
    model = create_model(
        config.model.name,
        norm_rule=rule() if norm.momentum is None else rule(norm.momentum),
        num_classes=len(dataset.class_names),
        stages=tuple(tuple(widths) for widths in config.model.stages),
        epsilon=norm.epsilon,
        init_name=config.model.init,
        dtype=jnp.dtype(config.dtype),
    )
    rates = schedules.learning_rates(
        schedule.name, lr=optimizer.lr, epochs=config.train.epochs, step_size=schedule.step_size,
        gamma=schedule.gamma, t_max=schedule.t_max, calls_per_epoch=schedule.calls_per_epoch,
    )  # fmt: skip
    lr = schedules.by_step(
        rates, steps_per_epoch=steps_per_epoch(len(dataset.train.labels), data.batch_size, data.sampler)
    )
    if optimizer.name == "sgd":
        tx = optimizers.sgd(lr, momentum=optimizer.momentum, weight_decay=optimizer.weight_decay)
    else:
        tx = optimizers.adam(
            lr, b1=optimizer.b1, b2=optimizer.b2, eps=optimizer.eps, weight_decay=optimizer.weight_decay
        )
    init_key, step_key, order_key = jax.random.split(jax.random.key(config.seed), 3)
    state = create_state(model, tx, init_key=init_key, key=step_key, image_size=data.image_size)
    n_train = len(dataset.train.labels)
    if config.rng == "torch":
        state = state.replace(params=jax.device_put(torch_random.draw_params(config.seed, state.params)))
        draw_epoch = torch_random.Epochs(
            config.seed, n_train, flips=data.augment == "flip", draws_before=torch_random.count_draws(state.params)
        ).draw
    else:

        def draw_epoch(epoch):
            return epoch_order(order_key, epoch, n_train), None

    return Experiment(
        model=model,
        tx=tx,
        transform=Transform(data.image_size, data.augment, data.normalize),
        rates=rates,
        train=jax.device_put(dataset.train),
        test=jax.device_put(dataset.test),
        batch_size=data.batch_size,
        eval_batch_size=data.eval_batch_size,
        sampler=data.sampler,
        draw_epoch=draw_epoch,
        state=state,
    )


def batches(
    order: np.ndarray, batch_size: int, sampler: str = "shuffle", flips: np.ndarray | None = None
) -> list[steps.Batch]:
    """An order, and which of its images are flipped if that is known, cut into batches as the steps take them."""
    indices, mask = split_batches(order, batch_size, sampler)
    if flips is not None:
        flips = cut(flips, *indices.shape)
    return [
        steps.Batch(row, None if mask is None else mask[i], None if flips is None else flips[i])
        for i, row in enumerate(indices)
    ]


def compile_eval(experiment: Experiment) -> Callable[[TrainState, steps.Batch], Metrics]:
    """The compiled evaluation step, with everything bound that stays the same."""
    x, test = experiment, experiment.test
    example = batches(np.arange(len(test.labels), dtype=np.int32), x.eval_batch_size)[0]
    compiled = steps.eval_step.lower(
        x.state.params, x.state.batch_stats, *test, example, model=x.model, transform=x.transform
    ).compile(compiler_options=compiler_options())
    return lambda state, batch: compiled(state.params, state.batch_stats, *test, batch)


def compile_train(experiment: Experiment) -> Callable[[TrainState, steps.Batch], tuple[TrainState, Metrics]]:
    """The compiled training step, with everything bound that stays the same. It donates the state."""
    x, train = experiment, experiment.train
    order, flips = x.draw_epoch(0)
    example = batches(order, x.batch_size, x.sampler, flips)[0]
    compiled = steps.train_step.lower(x.state, *train, example, model=x.model, tx=x.tx, transform=x.transform).compile(
        compiler_options=compiler_options()
    )
    return lambda state, batch: compiled(state, *train, batch)


class Totals:
    """Metrics of a phase so far, added up in double precision on the host."""

    def __init__(self):
        self.loss_sum, self.correct, self.count = 0.0, 0, 0

    def add(self, metrics: Metrics) -> None:
        """Adds one batch's metrics, which must be on the host."""
        self.loss_sum += float(metrics.loss_sum)
        self.correct += int(metrics.correct)
        self.count += int(metrics.count)

    @property
    def loss(self) -> float:
        """Mean over images. (The lecture's slide averages batch means, in which a short last batch weighs too much.)"""
        return self.loss_sum / self.count

    @property
    def accuracy(self) -> float:
        """Percent."""
        return 100.0 * self.correct / self.count


def fetch(dispatched: Iterator[Metrics], check_stop: Callable[[], None]) -> Iterator[Metrics]:
    """Each step's metrics on the host, in order, while a few later steps are already on their way.

    Waits in short naps rather than inside the runtime, where Python could not react to a signal.
    """
    pending = collections.deque()
    for metrics in dispatched:
        pending.append(metrics)
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


def evaluate(
    eval_step: Callable[[TrainState, steps.Batch], Metrics],
    state: TrainState,
    test_batches: list[steps.Batch],
    *,
    check_stop: Callable[[], None] = lambda: None,
    on_images: Callable[[int], None] = lambda count: None,
) -> Totals:
    """Loss and accuracy over the batches; every image in them counts once."""
    totals = Totals()
    for metrics in fetch((eval_step(state, batch) for batch in test_batches), check_stop):
        totals.add(metrics)
        on_images(int(metrics.count))
    return totals


def train_and_evaluate(
    config: ml_collections.ConfigDict, workdir: str | Path, *, check_stop: Callable[[], None] = lambda: None
) -> Result:
    """Trains what `config` names, evaluating after every epoch, in `workdir`; goes on where a run there stopped.

    Args:
      config: every key of `configs/default.py`.
      workdir: a folder that is new, empty, or holds a run of the same config.
      check_stop: called between steps; may raise to stop the run.

    Raises:
      InputError: something in the config, the folder or the data cannot be used; nothing was compiled or written.
      DivergedError: a loss became NaN or infinite; the last epoch's checkpoint is kept.
    """
    workdir = Path(workdir)
    dataset = prepare(config, workdir)
    experiment = build(config, dataset)
    workdir.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(workdir / "checkpoints")
    state, history, done = experiment.state, [], checkpoints.newest() or 0
    if checkpoints.newest() is not None:
        state, history = checkpoints.restore(done, state)
        print(f"Resuming the run in {workdir} after epoch {done}", flush=True)
    if done >= config.train.epochs and not history:
        raise InputError(
            f"train.epochs must be more than {done}, after which the run in {str(workdir)!r} came from elsewhere, got "
            f"{config.train.epochs}."
        )
    log = RunLog(workdir, config, history, epochs_done=done)
    try:
        _train_epochs(config, experiment, state, history, done, log, checkpoints, check_stop)
    except Interrupted as interrupted:
        raise Interrupted(
            interrupted.signum,
            f"Stopped; {_kept(checkpoints)} in {workdir}. The same command goes on from there.",
        ) from None
    except DivergedError as diverged:
        raise DivergedError(f"{diverged}; {_kept(checkpoints)} in {workdir}.") from None
    finally:
        checkpoints.close()
        log.close()
    result = Result(best=best_epoch(history), final=history[-1], history=history)
    print(f"Maximum test accuracy {result.best['test_accuracy']:.2f} % (epoch {result.best['epoch']})")
    print(f"Final test accuracy {result.final['test_accuracy']:.2f} % (epoch {result.final['epoch']})")
    print(f"Total time {duration(sum(row['seconds'] for row in history))}, results in {workdir}", flush=True)
    return result


def _kept(checkpoints: Checkpoints) -> str:
    newest = checkpoints.newest()
    return "no epoch was finished" if newest is None else f"the checkpoint of epoch {newest} is kept"


def _train_epochs(config, experiment, state, history, done, log, checkpoints, check_stop) -> None:
    """Trains the epochs after the first `done`, and adds their rows to `history`."""
    x, epochs = experiment, config.train.epochs
    if done >= epochs:
        print(f"Nothing left to train: {done} of {epochs} epochs are done", flush=True)
        return
    start = time.perf_counter()
    train_step, eval_step = compile_train(x), compile_eval(x)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    print(
        f"Network: {config.model.name}, {parameters:,} parameters, compiled in {duration(time.perf_counter() - start)}",
        flush=True,
    )
    n_test = len(x.test.labels)
    test_batches = batches(np.arange(n_test, dtype=np.int32), x.eval_batch_size)
    begin = time.perf_counter()
    for epoch in range(done, epochs):
        start, lr = time.perf_counter(), float(x.rates[epoch])
        order, flips = x.draw_epoch(epoch)
        train_batches = batches(order, x.batch_size, x.sampler, flips)
        with epoch_bar(epoch + 1, epochs, len(train_batches) * x.batch_size + n_test) as bar:
            state, train = _train_epoch(train_step, state, train_batches, epoch, lr, check_stop, bar.update)
            middle = time.perf_counter()
            test = evaluate(eval_step, state, test_batches, check_stop=check_stop, on_images=bar.update)
        if not math.isfinite(test.loss):
            raise DivergedError(
                f"The test loss became {test.loss} after epoch {epoch + 1}, step {len(train_batches)}, at learning "
                f"rate {lr:g}"
            )
        now = time.perf_counter()
        row = {
            "epoch": epoch + 1,
            "lr": lr,
            "train_loss": train.loss,
            "train_accuracy": train.accuracy,
            "test_loss": test.loss,
            "test_accuracy": test.accuracy,
            "seconds": now - start,
            "images_per_second": train.count / (middle - start),
        }
        history.append(row)
        log.add(row)
        if (epoch + 1) % config.train.checkpoint_every == 0 or epoch + 1 == epochs:
            checkpoints.save(epoch + 1, state, history)
        seconds_left = (now - begin) / (epoch + 1 - done) * (epochs - epoch - 1)
        print(epoch_line(row, epochs, seconds_left), flush=True)


def _train_epoch(train_step, state, train_batches, epoch, lr, check_stop, on_images) -> tuple[TrainState, Totals]:
    def dispatch():
        nonlocal state
        for batch in train_batches:
            state, metrics = train_step(state, batch)
            yield metrics

    totals = Totals()
    for step, metrics in enumerate(fetch(dispatch(), check_stop)):
        if not math.isfinite(metrics.loss_sum):
            raise DivergedError(
                f"The loss became {float(metrics.loss_sum / metrics.count)} in epoch {epoch + 1}, step {step + 1}, at "
                f"learning rate {lr:g}"
            )
        totals.add(metrics)
        on_images(int(metrics.count))
    return state, totals


def evaluate_run(config: ml_collections.ConfigDict, workdir: str | Path) -> dict[str, Totals]:
    """Evaluates the saved epochs of the run of `config` in `workdir`, the best and the newest; trains nothing.

    Raises:
      InputError: as `train_and_evaluate`, or the folder has no checkpoint.
    """
    workdir = Path(workdir)
    validate(config)
    if not workdir.is_dir():
        raise InputError(f"--workdir must be the folder of a run with --mode=evaluate, got {str(workdir)!r}.")
    read_config(workdir)
    dataset = prepare(config, workdir)
    experiment = build(config, dataset)
    checkpoints = Checkpoints(workdir / "checkpoints")
    saved = {"newest": checkpoints.newest(), "best": checkpoints.best()}
    if saved["best"] is None:  # none was measured
        del saved["best"]
    if saved["newest"] is None:
        raise InputError(f"--workdir must hold a checkpoint with --mode=evaluate, got {str(workdir)!r}.")
    eval_step = compile_eval(experiment)
    test_batches = batches(np.arange(len(experiment.test.labels), dtype=np.int32), experiment.eval_batch_size)
    results = {}
    for name, epoch in saved.items():
        state, _ = checkpoints.restore(epoch, experiment.state)
        results[name] = totals = evaluate(eval_step, state, test_batches)
        print(
            f"{name:>6} epoch {epoch}: test loss {totals.loss:.4f}, test accuracy {totals.accuracy:.2f} % "
            f"({totals.count:,} images)",
            flush=True,
        )
    checkpoints.close()
    return results
