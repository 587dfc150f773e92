"""What a data set is to the rest of the project, and the checks that every one passes."""

from typing import NamedTuple

import numpy as np

from cifar_jax.errors import InputError


class Split(NamedTuple):
    """Images, uint8 `[n, 32, 32, 3]`, and the class of each, int32 `[n]`; in host memory or on a device."""

    images: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    """A data set in host memory.

    class_names: one for each label.
    superclass_names: one for each superclass; () where the set has none.
    superclass_of: the superclass of each class; () likewise.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    superclass_names: tuple[str, ...]
    superclass_of: tuple[int, ...]


def check_dataset(dataset: Dataset) -> None:
    """Checks shapes, types and ranges.

    A label out of range would not stop JAX: it gives NaN, or wraps silently.

    Raises:
      InputError: the first thing that is wrong.
    """
    name, classes = dataset.name, len(dataset.class_names)
    for split in ("train", "test"):
        images, labels = getattr(dataset, split)
        if labels.dtype != np.int32 or labels.ndim != 1:
            raise InputError(f"Labels of {name} must be int32 [n], got {labels.dtype} {list(labels.shape)} in {split}.")
        if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3) or len(images) != len(labels) or not len(labels):
            raise InputError(
                f"Images of {name} must be uint8 [n, 32, 32, 3] with n labels, n at least 1, got {images.dtype} "
                f"{list(images.shape)} with {len(labels)} labels in {split}."
            )
        wrong = np.flatnonzero((labels < 0) | (labels >= classes))
        if len(wrong):
            raise InputError(
                f"Labels of {name} must be from 0 to {classes - 1}, got {labels[wrong[0]]} at position {wrong[0]} of "
                f"{split}."
            )
    superclasses = len(dataset.superclass_names)
    if len(dataset.superclass_of) != (classes if superclasses else 0):
        raise InputError(
            f"Superclasses of {name} must be one for each of {classes} classes, or none where it has no superclass "
            f"names, got {len(dataset.superclass_of)}."
        )
    if not all(0 <= superclass < superclasses for superclass in dataset.superclass_of):
        raise InputError(f"Superclasses of {name} must be from 0 to {superclasses - 1}, got {dataset.superclass_of}.")


def take(dataset: Dataset, limit_train: int, limit_test: int) -> Dataset:
    """The first images of each split; 0 takes all.

    Raises:
      InputError: a limit above the number of images.
    """
    splits = {}
    for name, limit in (("train", limit_train), ("test", limit_test)):
        split = getattr(dataset, name)
        if limit > len(split.labels):
            raise InputError(
                f"data.limit_{name} must be at most {len(split.labels)}, the number of images, or 0 for all, "
                f"got {limit}."
            )
        splits[name] = Split(split.images[: limit or None], split.labels[: limit or None])
    return dataset._replace(**splits)


def hold_out(dataset: Dataset, count: int) -> tuple[Dataset, Split | None]:
    """The data set without its last `count` training images, and these; None for 0.

    They are the same for every seed, and TFDS prepared the images in a random order, so the last are a fair sample.

    Raises:
      InputError: no image would be left to train on.
    """
    images, labels = dataset.train
    if count >= len(labels):
        raise InputError(f"data.holdout must be less than {len(labels)}, the number of training images, got {count}.")
    if count == 0:
        return dataset, None
    rest = dataset._replace(train=Split(images[:-count], labels[:-count]))
    return rest, Split(images[-count:], labels[-count:])
