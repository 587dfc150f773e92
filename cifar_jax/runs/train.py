"""A run: epochs of training and evaluation with their logs and checkpoints, and evaluation of what a run saved."""

import contextlib
import functools
import math
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import ml_collections

from cifar_jax.devices.distributed import Job
from cifar_jax.devices.interrupt import Interrupted
from cifar_jax.errors import DivergedError, InputError
from cifar_jax.nn.layers import running_stats
from cifar_jax.runs import phases
from cifar_jax.runs.build import Experiment, build, prepare, reseed
from cifar_jax.runs.checkpoint import Checkpoints, best_epoch
from cifar_jax.runs.config import validate, with_seed
from cifar_jax.runs.lock import locked
from cifar_jax.runs.progress import duration, epoch_bar, epoch_line
from cifar_jax.runs.workdir import NoLog, RunLog, read_config


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
      job: the processes that run this together, with one folder for all. The first one writes what the run leaves; its
        checkpoints are everyone's.
      whole_epochs: compile an epoch as one program rather than a step; None decides by the device.

    Raises:
      InputError: something in the config, the folder or the data cannot be used; nothing was compiled or written.
      DivergedError: a loss became NaN or infinite; the last epoch's checkpoint is kept.
    """
    workdirs = {config.seed: Path(workdir)}
    (result,) = train_seeds(config, workdirs, check_stop=check_stop, job=job, whole_epochs=whole_epochs).values()
    if isinstance(result, DivergedError):
        raise result
    return result


def train_seeds(
    config: ml_collections.ConfigDict,
    workdirs: Mapping[int, Path],
    *,
    check_stop: Callable[[], None] = lambda: None,
    job: Job | None = None,
    whole_epochs: bool | None = None,
) -> dict[int, Result | DivergedError]:
    """Trains `config` under each seed in its folder, one after another, through one compilation.

    Each is the run that `train_and_evaluate` makes of that seed alone, and its folder is that run's. One after another,
    because side by side, under `vmap`, the convolutions become grouped ones (jax#13800): a step of 2 or 4 seeds took
    1.1 to 2.2 times as long as their steps one by one, at three widths on two CPU cores.

    Args:
      config: every key of `configs/default.py`; `seed` and `train.seeds` do not matter.
      workdirs: the folder of each seed; see `seed_folders`.
      check_stop: called between steps; may raise to stop the run at hand, and with it all.
      job: as in `train_and_evaluate`, as is the next.
      whole_epochs: likewise.

    Returns:
      What each run came to, or that it diverged, which stops none of the others.

    Raises:
      InputError: something in the config, a folder or the data cannot be used; nothing was compiled or written.
    """
    dataset = prepare(config, workdirs, job)
    configs = {seed: with_seed(config, seed) for seed in workdirs}
    first = next(iter(workdirs))
    experiment = build(configs[first], dataset)
    compile_once = functools.cache(lambda: _compile(config.model.name, experiment, whole_epochs))
    results = {}
    for seed, workdir in workdirs.items():
        if len(workdirs) > 1:
            print(f"Seed {seed}, {len(results) + 1} of {len(workdirs)}: {workdir}", flush=True)
        x = experiment if seed == first else reseed(experiment, configs[seed])
        try:
            results[seed] = _run(configs[seed], x, workdir, compile_once, check_stop, job)
        except DivergedError as diverged:
            results[seed] = diverged
            if len(workdirs) > 1:
                print(f"Seed {seed}: {diverged}", flush=True)
    return results


def train_runs(
    config: ml_collections.ConfigDict, workdir: Path, *, check_stop: Callable[[], None], job: Job | None = None
) -> None:
    """What `python main.py` does: `train_seeds` in the folders of `seed_folders`, and a last line on all of them.

    Raises:
      InputError: as `train_seeds`.
      DivergedError: of some seeds, at the end.
    """
    validate(config)  # before its seeds are read
    results = train_seeds(config, seed_folders(config, workdir), check_stop=check_stop, job=job)
    diverged = {seed: result for seed, result in results.items() if isinstance(result, DivergedError)}
    best = [result.best["test_accuracy"] for result in results.values() if isinstance(result, Result)]
    if len(best) > 1:
        print(
            f"Maximum test accuracy of {len(best)} seeds: {statistics.mean(best):.2f} +- {statistics.stdev(best):.2f} %"
            " (mean, deviation)",
            flush=True,
        )
    if diverged:
        several = f"{len(diverged)} of {len(results)} seeds diverged: " if len(results) > 1 else ""
        raise DivergedError(several + " ".join(str(error) for error in diverged.values()))


def seed_folders(config: ml_collections.ConfigDict, workdir: Path) -> dict[int, Path]:
    """The folder of each of a config's seeds: `workdir` where there is one, `workdir/seedN` where there are several."""
    if config.train.seeds == 1:
        return {config.seed: workdir}
    return {seed: workdir / f"seed{seed}" for seed in range(config.seed, config.seed + config.train.seeds)}


def _compile(name: str, experiment: Experiment, whole: bool | None) -> phases.Phases:
    start = time.perf_counter()
    compiled = phases.compile_phases(experiment, whole=whole)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(experiment.state.params))
    print(
        f"Network: {name}, {parameters:,} parameters, compiled in {duration(time.perf_counter() - start)}", flush=True
    )
    return compiled


def _run(config, experiment, workdir, compile_once, check_stop, job) -> Result:
    """One seed's run, in its folder."""
    workdir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with contextlib.nullcontext() if job is None else job.agreement():
            if jax.process_index() == 0:
                stack.enter_context(locked(workdir))
        return _run_alone(config, experiment, workdir, compile_once, check_stop, job)


def _run_alone(config, experiment, workdir, compile_once, check_stop, job) -> Result:
    """The same, while no other process may train there."""
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
        if done < config.train.epochs:
            compiled = compile_once()
            _train_epochs(config, experiment, compiled, state, history, done, log, checkpoints, check_stop, job)
        else:
            print(f"Nothing left to train: {done} of {config.train.epochs} epochs are done", flush=True)
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


def _train_epochs(config, experiment, compiled, state, history, done, log, checkpoints, check_stop, job) -> None:
    """Trains the epochs after the first `done`, and adds their rows to `history`."""
    x, epochs = experiment, config.train.epochs
    evaluations = [*((split, None) for split in compiled.evaluate), *(("test", rule) for rule in config.norm.compare)]
    images = len(x.train.labels) + sum(len(getattr(x, split).labels) for split, _ in evaluations)
    begin, tell = time.perf_counter(), lambda: None
    for epoch in range(done, epochs):
        start, lr = time.perf_counter(), float(x.rates[epoch])
        with epoch_bar(epoch + 1, epochs, images) as bar:
            options = {"check_stop": check_stop, "on_images": functools.partial(_after_step, bar, job)}
            try:
                state, train = phases.train(compiled, state, x.draw_epoch(epoch), meanwhile=tell, **options)
            except DivergedError as diverged:
                raise DivergedError(f"{diverged} of epoch {epoch + 1}, at learning rate {lr:g}") from None
            middle = time.perf_counter()
            measured = {}
            for split, rule in evaluations:
                dispatched = compiled.evaluate[split](state.params, running_stats(state.batch_stats, rule))
                totals, ending = phases.evaluate(dispatched, **options), "" if rule is None else f"_{rule}"
                measured |= {f"{split}_loss{ending}": totals.loss, f"{split}_accuracy{ending}": totals.accuracy}
        if not math.isfinite(measured["test_loss"]):
            raise DivergedError(
                f"The test loss became {measured['test_loss']} after step {train.steps} of epoch {epoch + 1}, at "
                f"learning rate {lr:g}"
            )
        now = time.perf_counter()
        row = {
            "epoch": epoch + 1,
            "lr": lr,
            "train_loss": train.loss,
            "train_accuracy": train.accuracy,
            **measured,
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


def evaluate_runs(config: ml_collections.ConfigDict, workdir: Path, *, job: Job | None = None) -> None:
    """What `python main.py --mode=evaluate` does: `evaluate_run` for each seed.

    Raises:
      InputError: as `evaluate_run`.
    """
    validate(config)  # before its seeds are read
    for seed, folder in seed_folders(config, workdir).items():
        evaluate_run(with_seed(config, seed), folder, job=job)


def evaluate_run(
    config: ml_collections.ConfigDict, workdir: str | Path, *, job: Job | None = None
) -> dict[str, phases.Totals]:
    """Evaluates the saved epochs of the run of `config` in `workdir`, the best and the newest; trains nothing.

    Raises:
      InputError: as `train_and_evaluate`, or the folder has no checkpoint.
    """
    workdir = Path(workdir)
    if not workdir.is_dir():
        raise InputError(f"--workdir must be the folder of a run with --mode=evaluate, got {str(workdir)!r}.")
    read_config(workdir)
    dataset = prepare(config, workdir, job, read_only=True)
    experiment = build(config, dataset)
    if not (workdir / "checkpoints").is_dir():
        raise InputError(f"--workdir must hold a checkpoint with --mode=evaluate, got {str(workdir)!r}.")
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    saved = {"newest": checkpoints.newest(), "best": checkpoints.best()}
    if saved["best"] is None:  # none was measured
        del saved["best"]
    if saved["newest"] is None:
        raise InputError(f"--workdir must hold a checkpoint with --mode=evaluate, got {str(workdir)!r}.")
    whole = phases.whole_by_default(experiment)
    evaluation = phases.compile_evaluation(experiment, experiment.test, whole=whole)
    results = {}
    for name, epoch in saved.items():
        state, _ = checkpoints.restore(epoch, experiment.state)
        results[name] = totals = phases.evaluate(evaluation(state.params, running_stats(state.batch_stats)))
        print(
            f"{name:>6} epoch {epoch}: test loss {totals.loss:.4f}, test accuracy {totals.accuracy:.2f} % "
            f"({totals.count:,} images)",
            flush=True,
        )
    checkpoints.close()
    return results
