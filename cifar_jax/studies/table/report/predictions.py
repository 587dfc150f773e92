"""What a finished run answers to every test image, worked out once and kept in the run's folder."""

import functools
import io
import json
from pathlib import Path

import jax
import numpy as np

from cifar_jax.devices.select import compiler_options
from cifar_jax.errors import InputError
from cifar_jax.files import write_whole
from cifar_jax.nn.layers import running_stats
from cifar_jax.runs import phases, steps
from cifar_jax.runs.build import Experiment, build, prepare
from cifar_jax.runs.checkpoint import Checkpoints
from cifar_jax.runs.config import FREE_ON_RESUME, flatten
from cifar_jax.runs.workdir import read_config
from cifar_jax.studies.table.report.summaries import Predictions, from_probabilities
from cifar_jax.use.trained import probabilities

FILE = "predictions.npz"


def run_predictions(workdir: Path, epochs: int) -> Predictions:
    """The answers of the run in `workdir` after its last epoch; kept in its `predictions.npz`, and read from there.

    `epochs` is how many it has; its config may ask for more, where the table has been content with these.

    Not the best epoch's: that is picked on these images.

    Raises:
      InputError: the folder holds no run, or one without the checkpoint of its last epoch.
    """
    config = read_config(workdir)
    origin = json.dumps([epochs, {key: value for key, value in flatten(config).items() if key not in FREE_ON_RESUME}])
    if (kept := _read(workdir / FILE, origin)) is not None:
        return kept
    dataset = prepare(config, workdir)
    checkpoints = Checkpoints(workdir / "checkpoints")
    try:
        if checkpoints.newest() != epochs:
            raise InputError(
                f"{workdir} must hold the checkpoint of epoch {epochs}, its last one, got {checkpoints.newest()}."
            )
        experiment = build(config, dataset)
        state, _ = checkpoints.restore(epochs, experiment.state)
    finally:
        checkpoints.close()
    batch_stats = running_stats(state.batch_stats)
    answers = class_probabilities(experiment, state.params, batch_stats, dataset.test.images)
    predictions = from_probabilities(epochs, dataset.test.labels, answers)
    _write(workdir / FILE, origin, predictions)
    return predictions


def class_probabilities(experiment: Experiment, params, batch_stats, images: np.ndarray) -> np.ndarray:
    """The probability of every class for every image, float32 `[n, classes]`, by the running statistics.

    `images`, uint8 `[n, 32, 32, 3]`, are in host memory.
    """
    x, n = experiment, len(images)
    order = np.arange(n, dtype=np.int32)
    batches = phases.unstack(steps.split_epoch(order, None, batch_size=x.eval_batch_size, sampler="shuffle"))
    score = _compiled(tuple(compiler_options(x.model.dtype).items()))
    variables = {"params": params, "batch_stats": batch_stats}
    parts = [
        score(variables, images.take(batch.indices, axis=0, mode="clip"), model=x.model, transform=x.transform)
        for batch in batches
    ]
    return np.concatenate(jax.device_get(parts))[:n].astype(np.float32)


@functools.cache
def _compiled(options: tuple[tuple[str, str | bool], ...]):
    """One program for all runs of the same network; compiled like the evaluation, so that answers are the same."""
    return jax.jit(probabilities, static_argnames=("model", "transform"), compiler_options=dict(options))


def _read(path: Path, origin: str) -> Predictions | None:
    """What `path` keeps, or None where there is nothing, it is damaged, or of another config or epoch."""
    try:
        with np.load(path, allow_pickle=False) as members:
            if str(members["origin"]) != origin:
                return None
            return Predictions(int(members["epoch"]), *(members[name] for name in Predictions._fields[1:]))
    except Exception:  # a damaged zip raises anything
        return None


def _write(path: Path, origin: str, predictions: Predictions) -> None:
    file = io.BytesIO()
    np.savez_compressed(file, origin=np.array(origin), **predictions._asdict())
    write_whole(path, file.getvalue())
