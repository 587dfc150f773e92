"""A run: epochs of training and evaluation with their logs and checkpoints, and evaluation of what a run saved."""

import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import ml_collections

from cifar_jax import phases
from cifar_jax.checkpoint import Checkpoints, best_epoch
from cifar_jax.config import validate
from cifar_jax.distributed import Job
from cifar_jax.errors import DivergedError, InputError
from cifar_jax.experiment import build, prepare
from cifar_jax.interrupt import Interrupted
from cifar_jax.progress import duration, epoch_bar, epoch_line
from cifar_jax.workdir import NoLog, RunLog, read_config


class Result(NamedTuple):
    """What a run came to: the best epoch's and the last one's row of metrics, and all of them."""

    best: dict
    final: dict
    history: list[dict]


def train_and_evaluate(
    config: ml_collections.ConfigDict,
    workdir: str | Path,
    *,
    check_stop: Callable[[], None] = lambda: None,
    job: Job | None = None,
    whole_epochs: bool | None = None,
) -> Result:
    """Trains what `config` names, evaluating after every epoch, in `workdir`; goes on where a run there stopped.

    Args:
      config: every key of `configs/default.py`.
      workdir: a folder that is new, empty, or holds a run of the same config.
      check_stop: called between steps; may raise to stop the run.
      job: the processes that run this together; the first one writes what the run leaves, but for its checkpoints,
        which all of them must be able to write and read.
      whole_epochs: compile an epoch as one program rather than a step; None decides by the device.

    Raises:
      InputError: something in the config, the folder or the data cannot be used; nothing was compiled or written.
      DivergedError: a loss became NaN or infinite; the last epoch's checkpoint is kept.
    """
    workdir = Path(workdir)
    dataset = prepare(config, workdir, job)
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
    log = RunLog(workdir, config, history, epochs_done=done) if jax.process_index() == 0 else NoLog()
    try:
        _train_epochs(config, experiment, state, history, done, log, checkpoints, check_stop, job, whole_epochs)
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


def _train_epochs(config, experiment, state, history, done, log, checkpoints, check_stop, job, whole_epochs) -> None:
    """Trains the epochs after the first `done`, and adds their rows to `history`."""
    x, epochs = experiment, config.train.epochs
    if done >= epochs:
        print(f"Nothing left to train: {done} of {epochs} epochs are done", flush=True)
        return
    start = time.perf_counter()
    compiled = phases.compile_phases(x, whole=whole_epochs)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    print(
        f"Network: {config.model.name}, {parameters:,} parameters, compiled in {duration(time.perf_counter() - start)}",
        flush=True,
    )
    images = len(x.train.labels) + len(x.test.labels)
    begin, tell = time.perf_counter(), lambda: None
    for epoch in range(done, epochs):
        start, lr = time.perf_counter(), float(x.rates[epoch])
        with epoch_bar(epoch + 1, epochs, images) as bar:
            options = {"check_stop": check_stop, "on_images": functools.partial(_after_step, bar, job)}
            try:
                state, train = phases.train(compiled, state, epoch, meanwhile=tell, **options)
            except DivergedError as diverged:
                raise DivergedError(f"{diverged}, at learning rate {lr:g}") from None
            middle = time.perf_counter()
            test = phases.evaluate(compiled.evaluate, state, **options)
        if not math.isfinite(test.loss):
            raise DivergedError(
                f"The test loss became {test.loss} after epoch {epoch + 1}, step {train.steps}, at learning rate {lr:g}"
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
        log.record(row)
        if (epoch + 1) % config.train.checkpoint_every == 0 or epoch + 1 == epochs:
            checkpoints.save(epoch + 1, state, history)
        seconds_left = (now - begin) / (epoch + 1 - done) * (epochs - epoch - 1)
        print(epoch_line(row, epochs, seconds_left), flush=True)
        tell = log.draw  # while the device is busy with the next epoch
    tell()


def _after_step(bar, job: Job | None, images: int) -> None:
    bar.update(images)
    if job is not None:
        job.after_step()


def evaluate_run(
    config: ml_collections.ConfigDict, workdir: str | Path, *, job: Job | None = None
) -> dict[str, phases.Totals]:
    """Evaluates the saved epochs of the run of `config` in `workdir`, the best and the newest; trains nothing.

    Raises:
      InputError: as `train_and_evaluate`, or the folder has no checkpoint.
    """
    workdir = Path(workdir)
    validate(config)
    if not workdir.is_dir():
        raise InputError(f"--workdir must be the folder of a run with --mode=evaluate, got {str(workdir)!r}.")
    read_config(workdir)
    dataset = prepare(config, workdir, job)
    experiment = build(config, dataset)
    checkpoints = Checkpoints(workdir / "checkpoints")
    saved = {"newest": checkpoints.newest(), "best": checkpoints.best()}
    if saved["best"] is None:  # none was measured
        del saved["best"]
    if saved["newest"] is None:
        raise InputError(f"--workdir must hold a checkpoint with --mode=evaluate, got {str(workdir)!r}.")
    evaluation = phases.compile_evaluation(experiment, whole=jax.default_backend() != "cpu")
    results = {}
    for name, epoch in saved.items():
        state, _ = checkpoints.restore(epoch, experiment.state)
        results[name] = totals = phases.evaluate(evaluation, state)
        print(
            f"{name:>6} epoch {epoch}: test loss {totals.loss:.4f}, test accuracy {totals.accuracy:.2f} % "
            f"({totals.count:,} images)",
            flush=True,
        )
    checkpoints.close()
    return results
