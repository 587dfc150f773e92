"""What a process that runs one arm is asked to do, as it is handed over in a file: the recipe, the data, the limits.

Nothing here imports JAX or PyTorch, so that each arm starts with what it needs itself.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cifar_jax.data.dataset import Split


class Recipe(NamedTuple):
    """One training run, the same for all arms.

    config: the run's config, nested; arms of this project build from it, the others read the optimizer from it.
    stages: widths of the convolutions between pools.
    classes: number of logits.
    epochs: how many to train at most.
    seconds: after the first epoch, so long at most; None is without a limit.
    device: "cpu" or "gpu".
    threads: that PyTorch may use on the CPU; JAX takes all there are.
    precision: of float32 products on a GPU, "tensorfloat32" or "highest"; a CPU knows no other than the highest.
    images: folder of what `write_splits` left.
    draws: folder of what `write_draws` left.
    """

    config: dict[str, Any]
    stages: list[list[int]]
    classes: int
    epochs: int
    seconds: float | None
    device: str
    threads: int
    precision: str
    images: str
    draws: str

    @property
    def batch_size(self) -> int:
        """Images a step, in training and in evaluation."""
        return self.config["data"]["batch_size"]

    @property
    def image_size(self) -> int:
        """Height and width that the network sees."""
        return self.config["data"]["image_size"]

    @property
    def half(self) -> bool:
        """Whether convolutions compute in bfloat16."""
        return self.config["dtype"] == "bfloat16"


class Draws(NamedTuple):
    """The order of the training images in each epoch, int32 `[epochs, n]`, and which of them, in that order, are
    flipped, bool `[epochs, n]`: what PyTorch draws after `torch.manual_seed(seed)`."""

    order: np.ndarray
    flips: np.ndarray


def write_splits(folder: Path, train: Split, test: Split) -> None:
    """Leaves the images of training and test in `folder`."""
    for name, split in (("train", train), ("test", test)):
        np.save(folder / f"{name}_images.npy", split.images)
        np.save(folder / f"{name}_labels.npy", split.labels)


def read_splits(folder: str) -> tuple[Split, Split]:
    """Training and test images that `write_splits` left."""
    train, test = (
        Split(_read(folder, f"{name}_images"), _read(folder, f"{name}_labels")) for name in ("train", "test")
    )
    return train, test


def write_draws(folder: Path, draws: Draws) -> None:
    """Leaves the draws in `folder`."""
    np.save(folder / "order.npy", draws.order)
    np.save(folder / "flips.npy", draws.flips)


def read_draws(folder: str) -> Draws:
    """The draws that `write_draws` left."""
    return Draws(_read(folder, "order"), _read(folder, "flips"))


def _read(folder: str, name: str) -> np.ndarray:
    return np.load(Path(folder) / f"{name}.npy")


def write_request(path: Path, arm: str, recipe: Recipe, started: float) -> None:
    """Asks for `arm`, in a process that starts at `started` by `time.time()`."""
    path.write_text(json.dumps({"arm": arm, "started": started, "recipe": recipe._asdict()}))


def read_request(path: Path) -> tuple[str, Recipe, float]:
    """What `write_request` asked for."""
    request = json.loads(path.read_text())
    return request["arm"], Recipe(**request["recipe"]), request["started"]
