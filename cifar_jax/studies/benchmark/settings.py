"""What a command of this room is asked to measure: its flags, the config behind them, and the data."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from cifar_jax.data import load_dataset
from cifar_jax.data.dataset import take
from cifar_jax.data.shapes import make_shapes
from cifar_jax.errors import InputError
from cifar_jax.nn.models import NETWORKS
from cifar_jax.runs.config import explain_flag_error, validate
from cifar_jax.runs.torch_random import Epochs
from cifar_jax.studies.benchmark.recipe import Draws, write_splits

DEFAULT_CONFIG = Path(__file__).parents[3] / "configs" / "cnn6_adam.py"

# What the arms outside this project are written for.
_FIXED = {
    "norm.rule": "torch",
    "norm.momentum": None,
    "norm.compare": (),
    "data.holdout": 0,
    "data.augment": "flip",
    "data.normalize": True,
    "data.sampler": "shuffle",
    "schedule.name": "constant",
    "model.init": "torch",
}


def define_flags(given: flags.FlagValues, argv: list[str]) -> None:
    """The flags that all commands of this room share, for the command line `argv`."""
    config_flags.DEFINE_config_file(
        "config", None, f"The recipe; {DEFAULT_CONFIG.name} unless given.", flag_values=given, sys_argv=argv
    )
    flags.DEFINE_string("model", None, "Short for --config.model.name: cnn6 or cnn10.", flag_values=given)
    flags.DEFINE_integer("size", None, "Short for --config.data.image_size.", flag_values=given)
    flags.DEFINE_integer("batch", None, "Images a step, in training and evaluation.", lower_bound=1, flag_values=given)
    flags.DEFINE_string("dtype", None, "Short for --config.dtype: float32 or bfloat16.", flag_values=given)
    flags.DEFINE_string("json", None, "File for the figures.", flag_values=given)


def define_data_flags(given: flags.FlagValues) -> None:
    """The flags of those that train on pictures."""
    flags.DEFINE_integer("images", None, "Training images.", lower_bound=1, flag_values=given)
    flags.DEFINE_string("data_dir", None, "Folder with cifar100; drawn shapes unless given.", flag_values=given)


def parse(given: flags.FlagValues, argv: list[str]) -> ConfigDict:
    """Reads the command line, whose first word is the command's name, and gives its config, checked.

    Raises:
      InputError: something in it cannot be used; in one sentence.
    """
    if not any(argument.lstrip("-").split("=")[0] == "config" for argument in argv[1:]):
        argv[1:1] = [f"--config={DEFAULT_CONFIG}"]
    try:
        rest = given(argv)
        config = given["config"].value
        config.to_dict()  # a file that does not exist shows here
    except Exception as error:  # a config file may raise anything
        raise InputError(explain_flag_error(argv, error)) from error
    if len(rest) > 1:
        raise InputError(f"{argv[0]} takes flags only, got {rest[1]!r}.")
    return config


def put_flags(given: flags.FlagValues, config: ConfigDict) -> None:
    """Puts the short flags into the config."""
    shorts = (("model.name", given.model), ("data.image_size", given.size), ("dtype", given.dtype))
    for key, value in (*shorts, ("data.batch_size", given.batch)):
        if value is not None:
            config.update_from_flattened_dict({key: value})


def check(config: ConfigDict) -> None:
    """Makes the config draw as PyTorch does and use one device, and checks it.

    Raises:
      InputError: it is wrong, or not what the arms outside this project are written for.
    """
    config.data.eval_batch_size = config.data.batch_size
    config.rng, config.sharding.data = "torch", 1
    validate(config)
    if config.dtype == "float64":
        raise InputError("dtype must be float32 or bfloat16 for the benchmark, got 'float64'.")
    for key, value in _FIXED.items():
        section, name = key.split(".")
        if config[section][name] != value:
            raise InputError(f"{key} must be {value!r} for the benchmark, got {config[section][name]!r}.")


def stages(config: ConfigDict) -> list[list[int]]:
    """The widths of the network's convolutions."""
    return [list(widths) for widths in config.model.stages or NETWORKS[config.model.name]]


class Images(NamedTuple):
    """Images in a folder, as `recipe.write_splits` leaves them.

    train, test: how many.
    classes: how many.
    source: where they come from, in words.
    """

    folder: Path
    train: int
    test: int
    classes: int
    source: str


def store_images(folder: Path, images: int, batch_size: int, data_dir: str | None) -> Images:
    """Leaves so many training images and a fifth as many test images, rounded down to whole batches, in `folder`.

    CIFAR-100 from `data_dir`, or shapes drawn here where it is None.

    Raises:
      InputError: there is less than a batch of either, or the data folder does not hold CIFAR-100.
    """
    if images < batch_size:
        raise InputError(f"--images must be at least one batch, {batch_size}, got {images}.")
    train, test = (max(n // batch_size, 1) * batch_size for n in (images, images // 5))
    if data_dir is None:
        dataset, source = make_shapes(0, -(-train // 100), -(-test // 100)), "drawn shapes"
    else:
        dataset, source = load_dataset("cifar100", data_dir), "CIFAR-100"
    for split, due in (("train", train), ("test", test)):
        there = len(getattr(dataset, split).labels)
        if due > there:
            raise InputError(
                f"--images and --batch must ask for at most the {there} {split} images there are, got {due}."
            )
    dataset = take(dataset, train, test)
    write_splits(folder, dataset.train, dataset.test)
    return Images(folder, train, test, len(dataset.class_names), source)


def draw(config: ConfigDict, images: int, epochs: int, parameters: int) -> Draws:
    """Each epoch's order and flips, as PyTorch draws them after the weights of the network.

    Args:
      config: for its seed.
      images: how many to order.
      epochs: how many.
      parameters: of the convolutions and the linear layer, which draw; BatchNorm's do not.
    """
    stream = Epochs(config.seed, images, flips=True, draws_before=parameters)
    order, flips = zip(*(stream.draw(epoch) for epoch in range(epochs)), strict=True)
    return Draws(np.stack(order), np.stack(flips))
