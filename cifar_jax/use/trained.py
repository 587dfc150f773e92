"""The network that a run has trained, read from its folder alone: no data set is needed."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Float, UInt8

from cifar_jax.data import class_names
from cifar_jax.data.cache import cache_folder
from cifar_jax.devices.select import compiler_options, keep_compilations, select_devices
from cifar_jax.errors import InputError
from cifar_jax.nn.models import CNN
from cifar_jax.nn.transforms import Transform, transform_eval
from cifar_jax.runs.build import build_model
from cifar_jax.runs.checkpoint import Checkpoints
from cifar_jax.runs.config import flatten, validate
from cifar_jax.runs.workdir import read_config


class Trained(NamedTuple):
    """A trained network and what belongs to it.

    config: the run's, by dotted key.
    variables: "params" and "batch_stats", on the device.
    class_names: of the logits, in their order.
    epoch: after which the checkpoint was saved.
    test_accuracy: of that epoch, in percent; None where the run did not measure it.
    """

    config: dict[str, Any]
    model: CNN
    transform: Transform
    variables: dict[str, Any]
    class_names: tuple[str, ...]
    epoch: int
    test_accuracy: float | None


def load_trained(workdir: str | Path) -> Trained:
    """The network of the run in `workdir` at its best epoch by test accuracy; the newest where none was measured.

    It runs on what JAX finds here, wherever it was trained. Nothing in the folder changes.

    Raises:
      InputError: the folder is no run's, it has no checkpoint, or these cannot be read.
    """
    workdir = Path(workdir)
    config = _read(workdir)
    jax.config.update("jax_enable_x64", config.dtype == "float64")
    select_devices("auto")
    with contextlib.suppress(OSError):  # no home folder: compile every time
        keep_compilations(cache_folder() / "xla")
    names, size = class_names(config.data.name), config.data.image_size
    # Other rules' averages may lie in the checkpoint; only the run's own are read.
    config.norm.compare = ()
    model = build_model(config, len(names))
    images = jnp.zeros((1, size, size, 3))
    like = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    epoch, test_accuracy, variables = _read_checkpoint(workdir, dict(like))
    transform = Transform(size, normalize=config.data.normalize)
    return Trained(flatten(config), model, transform, jax.device_put(variables), names, epoch, test_accuracy)


def _read(workdir: Path) -> ml_collections.ConfigDict:
    try:
        config = read_config(workdir)
    except InputError as error:
        what = "is a file" if workdir.is_file() else "does not exist"
        what = "has no readable config.json" if workdir.is_dir() else what
        if seeds := sorted(path.parent.name for path in workdir.glob("seed*/config.json")):
            what += f"; runs are in its {', '.join(seeds)}"
        raise InputError(f"--workdir must be the folder of a run, got {str(workdir)!r}, which {what}.") from error
    try:
        validate(config)
    except InputError as error:
        raise InputError(f"{workdir / 'config.json'} must be as the run wrote it: {error}") from error
    return config


def _read_checkpoint(workdir: Path, like: dict) -> tuple[int, float | None, dict]:
    """The epoch, its test accuracy and its variables."""
    checkpoints = None
    if (workdir / "checkpoints").is_dir():
        checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    if checkpoints is None or checkpoints.newest() is None:
        raise InputError(f"--workdir must hold a checkpoint, got {str(workdir)!r}, which has none.")
    # The best was picked on the test images, which flatters its figure. To other pictures it is as fair as any.
    epoch = checkpoints.newest() if checkpoints.best() is None else checkpoints.best()
    variables = checkpoints.restore_variables(epoch, like)
    checkpoints.close()
    return epoch, checkpoints.test_accuracy(epoch), variables


def probabilities(
    variables, images: UInt8[Array, "batch 32 32 3"], *, model: CNN, transform: Transform
) -> Float[Array, "batch classes"]:
    """What the network says of each class, as evaluation sees the images: float32, or float64 in a run of float64."""
    x = transform_eval(images, transform, dtype=jnp.promote_types(model.dtype, jnp.float32))
    return jax.nn.softmax(model.apply(variables, x, train=False))


def compile_probabilities(
    trained: Trained, batch_size: int
) -> Callable[[UInt8[np.ndarray, "n 32 32 3"]], Float[np.ndarray, "n classes"]]:
    """`probabilities` of up to `batch_size` images, as one program; an image's do not depend on those beside it."""
    parts = {"model": trained.model, "transform": trained.transform}
    images = jax.ShapeDtypeStruct((batch_size, 32, 32, 3), jnp.uint8)
    compiled = (
        jax.jit(probabilities, static_argnames=tuple(parts))
        .lower(trained.variables, images, **parts)
        .compile(compiler_options=compiler_options(trained.model.dtype))
    )

    def run(images):
        batch = np.zeros((batch_size, *images.shape[1:]), np.uint8)
        batch[: len(images)] = images
        return np.asarray(compiled(trained.variables, batch))[: len(images)]

    return run


def predict(trained: Trained, images: UInt8[np.ndarray, "n 32 32 3"]) -> Float[np.ndarray, "n classes"]:
    """The probability of each class for each image, by `Trained.class_names`; in batches, compiled at each call.

    images: RGB pixels, as in `load_dataset(...).test.images` or from `read_picture`.
    """
    if not len(images):
        return np.zeros((0, len(trained.class_names)), np.float32)
    size = min(trained.config["data.eval_batch_size"], len(images))
    run = compile_probabilities(trained, size)
    return np.concatenate([run(images[start : start + size]) for start in range(0, len(images), size)])
