"""What a command of this room is asked to measure: its flags, the config behind them, and the data."""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from cifar_jax.command_line import Parser, integer, path
from cifar_jax.data import load_dataset
from cifar_jax.data.dataset import take
from cifar_jax.data.shapes import make_shapes
from cifar_jax.errors import InputError
from cifar_jax.nn.models import NETWORKS
from cifar_jax.runs.config import set_from_text, validate
from cifar_jax.runs.config_flags import add_config
from cifar_jax.runs.torch_random import Epochs
from cifar_jax.studies.benchmark.recipe import Draws, write_splits

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


def add_arguments(parser: Parser) -> None:
    """The flags that all commands of this room share."""
    add_config(parser, default="cnn6_adam")
    parser.add_argument("--model", help="short for --config.model.name")
    parser.add_argument("--size", help="short for --config.data.image_size")
    parser.add_argument("--batch", type=integer(1), metavar="N", help="images a step, in training and evaluation")
    parser.add_argument("--dtype", help="short for --config.dtype: float32 or bfloat16")
    parser.add_argument("--json", type=path, metavar="FILE", help="for the figures")


def add_data_arguments(parser: Parser) -> None:
    """The flags of those that train on pictures."""
    parser.add_argument("--images", type=integer(1), metavar="N", help="training images")
    parser.add_argument("--data_dir", metavar="FOLDER", help="with cifar100; drawn shapes unless given")


def put_short_flags(arguments: argparse.Namespace) -> ConfigDict:
    """The config, with the short flags put into it.

    Raises:
      InputError: a key does not take this.
    """
    config = arguments.config
    shorts = (("model.name", arguments.model), ("data.image_size", arguments.size), ("dtype", arguments.dtype))
    for key, value in (*shorts, ("data.batch_size", arguments.batch)):
        if value is not None:
            set_from_text(config, key, str(value))
    return config


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
