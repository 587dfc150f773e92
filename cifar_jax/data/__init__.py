"""Data sets: CIFAR-100 and CIFAR-10 through TFDS, without TensorFlow, and the embedded shapes."""

import os
import shutil
from pathlib import Path

import numpy as np

from cifar_jax.data.cache import cache_folder, map_arrays, only_process, read_arrays, write_arrays
from cifar_jax.data.cifar import SOURCES, Source, find_prepared, prepare, read_prepared
from cifar_jax.data.dataset import Dataset, Split, check_dataset
from cifar_jax.data.download import download
from cifar_jax.errors import InputError

DATASETS = ("cifar100", "cifar10", "shapes")


def load_dataset(name: str, data_dir: str = "") -> Dataset:
    """The data set called `name`, in memory and checked.

    `data_dir` names a folder prepared by TFDS, with `<name>/<version>` in it. Without one, the official archive is
    downloaded and prepared in the cache folder, once. Decoded images are cached too, so that a second call takes less
    than a second.

    Raises:
      InputError: the folder does not hold the data set, its files are damaged, or there is neither folder nor network.
    """
    if name == "shapes":
        from cifar_jax.data.shapes import make_shapes

        dataset = make_shapes()
    else:
        source = SOURCES[name]
        folder = _given(source, data_dir) if data_dir else fetch(source)
        dataset = _load_prepared(source, folder)
    check_dataset(dataset)
    return dataset


def class_names(name: str) -> tuple[str, ...]:
    """The classes of the data set called `name`, by label; without the data, which is refused where it has others."""
    if name == "shapes":
        from cifar_jax.data.shapes import CLASS_NAMES

        return CLASS_NAMES
    return SOURCES[name].class_names


def map_dataset(name: str, data_dir: str = "") -> Dataset:
    """As `load_dataset`, for one of many processes: images that are kept decoded are read when they are touched.

    Of the processes on a machine one decodes them, and the others wait for it.
    """
    if name == "shapes":
        return load_dataset(name)
    source = SOURCES[name]
    folder = _given(source, data_dir) if data_dir else fetch(source)
    images = ("train_images", "test_images")
    try:
        with only_process(name):
            if map_arrays(folder, images) is None:
                _load_prepared(source, folder)
    except OSError:  # no cache folder
        return load_dataset(name, data_dir)
    arrays = map_arrays(folder, images)
    if arrays is None:  # could not be kept
        return load_dataset(name, data_dir)
    dataset = _assemble(source, arrays)
    check_dataset(dataset)
    return dataset


def fetch(source: Source) -> Path:
    """The folder of the data set in the cache, downloaded and prepared if it is not there yet.

    Raises:
      InputError: it cannot be downloaded, or the cache folder cannot be written.
    """
    try:
        data_dir = cache_folder() / "tfds"
        if folder := find_prepared(source, data_dir):
            return folder
        with only_process(source.name):
            return find_prepared(source, data_dir) or _download_and_prepare(source, data_dir)
    except OSError as error:  # DownloadError is one
        raise InputError(
            f"data.dir must name a folder with {source.name} prepared by TFDS (--config.data.dir=FOLDER) where it "
            f"cannot be downloaded, got '' and {' '.join(str(error).split())}; the embedded set needs neither: "
            "--config=configs/quickstart.py or --config.data.name=shapes."
        ) from error


def _download_and_prepare(source: Source, data_dir: Path) -> Path:
    for left in (data_dir / source.name).glob("incomplete.*"):  # by a process that was killed
        shutil.rmtree(left)
    archive = cache_folder() / "downloads" / source.url.rsplit("/", 1)[-1]
    download(source.url, archive, sha256=source.sha256)
    print(f"Preparing {source.name} in {data_dir}", flush=True)
    prepare(source, archive, data_dir)
    os.unlink(archive)
    return find_prepared(source, data_dir)


def _given(source: Source, data_dir: str) -> Path:
    try:
        path = Path(data_dir).expanduser()
        if folder := find_prepared(source, path):
            return folder
        if not path.is_dir():
            what = "which is a file" if path.exists() else "which does not exist"
        else:
            inside = ", ".join(sorted(entry.name for entry in path.iterdir())[:5])
            what = f"which holds {inside}" if inside else "which is empty"
    except (OSError, ValueError, RuntimeError) as error:  # may not be read, cannot be a path, has no such user's home
        what = f"which cannot be read: {error}"
    raise InputError(
        f"data.dir must be a folder with {source.name}/<version> prepared by TFDS, got {data_dir!r}, {what}."
    )


def _load_prepared(source: Source, folder: Path) -> Dataset:
    arrays = read_arrays(folder)
    if arrays is None:
        print(f"Decoding the images in {folder}", flush=True)
        dataset = read_prepared(source, folder)
        check_dataset(dataset)
        write_arrays(
            folder,
            {
                "train_images": dataset.train.images,
                "train_labels": dataset.train.labels,
                "test_images": dataset.test.images,
                "test_labels": dataset.test.labels,
                "superclass_of": np.array(dataset.superclass_of, np.int32),
            },
        )
        return dataset
    return _assemble(source, arrays)


def _assemble(source: Source, arrays: dict[str, np.ndarray]) -> Dataset:
    return Dataset(
        source.name,
        Split(arrays["train_images"], arrays["train_labels"]),
        Split(arrays["test_images"], arrays["test_labels"]),
        source.class_names,
        source.superclass_names,
        tuple(arrays["superclass_of"].tolist()),
    )
