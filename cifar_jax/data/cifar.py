"""CIFAR-10 and CIFAR-100: a TFDS builder that needs no TensorFlow, and reading what it or TFDS itself prepared."""

import io
import re
import sys
import tarfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cifar_jax.data.dataset import Dataset, Split
from cifar_jax.errors import InputError

VERSION = "3.0.2"  # of TFDS's own builders, whose folders ours are interchangeable with


class Source(NamedTuple):
    """An official archive: where it lies, what it must hash to, and what is in it."""

    name: str
    url: str
    sha256: str
    folder: str
    train_files: tuple[str, ...]
    test_files: tuple[str, ...]
    class_names: tuple[str, ...]
    superclass_names: tuple[str, ...]


_CIFAR100_CLASSES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man
    maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree
    plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail
    snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout
    tulip turtle wardrobe whale willow_tree wolf woman worm
""".split()

_CIFAR100_SUPERCLASSES = """
    aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices household_furniture
    insects large_carnivores large_man-made_outdoor_things large_natural_outdoor_scenes large_omnivores_and_herbivores
    medium_mammals non-insect_invertebrates people reptiles small_mammals trees vehicles_1 vehicles_2
""".split()

_CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()

SOURCES = {
    "cifar100": Source(
        name="cifar100",
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        folder="cifar-100-binary",
        train_files=("train.bin",),
        test_files=("test.bin",),
        class_names=tuple(_CIFAR100_CLASSES),
        superclass_names=tuple(_CIFAR100_SUPERCLASSES),
    ),
    "cifar10": Source(
        name="cifar10",
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        folder="cifar-10-batches-bin",
        train_files=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        test_files=("test_batch.bin",),
        class_names=tuple(_CIFAR10_CLASSES),
        superclass_names=(),
    ),
}


def read_archive(archive: Path, source: Source, files: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 `[n, 32, 32, 3]` and labels uint8 `[n, 1 or 2]` (superclass first) of an official binary archive.

    Each record is its labels, then the red, green and blue plane, row by row.

    Raises:
      InputError: the archive is damaged or is not of that layout.
    """
    label_bytes = 2 if source.superclass_names else 1
    try:
        with tarfile.open(archive) as tar:
            data = b"".join(tar.extractfile(f"{source.folder}/{file}").read() for file in files)
        records = np.frombuffer(data, np.uint8).reshape(-1, label_bytes + 3 * 32 * 32)
    except (OSError, EOFError, KeyError, ValueError, tarfile.TarError) as error:
        raise InputError(
            f"The {source.name} archive must be in the official binary layout, got {archive}: {error}."
        ) from error
    return records[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, :label_bytes]


def prepare(source: Source, archive: Path, data_dir: Path) -> None:
    """Writes an official archive as a TFDS data set (`array_record`) to `data_dir/<name>/<VERSION>`, whole or not."""
    import tensorflow_datasets as tfds
    from tqdm import tqdm

    def examples(split: str, files: tuple[str, ...]) -> Iterator[tuple[int, dict]]:
        images, labels = read_archive(archive, source, files)
        bar = tqdm(images, desc=f"{source.name} {split}", unit=" images", disable=not sys.stderr.isatty())
        for number, (image, label) in enumerate(zip(bar, labels, strict=True)):
            example = {"id": f"{split}_{number:05d}", "image": io.BytesIO(_encode_png(image)), "label": int(label[-1])}
            if source.superclass_names:
                example["coarse_label"] = int(label[0])
            # TFDS shuffles by a hash of this key: with a number, records stand in the order of TFDS's own folder.
            yield number, example

    # A builder defined twice in a process would otherwise be an error, and TFDS has builders of these names.
    with tfds.core.registered.skip_registration():

        class Builder(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version(VERSION)
            name = source.name

            def _info(self):
                features = {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(32, 32, 3), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(names=source.class_names),
                }
                if source.superclass_names:
                    features["coarse_label"] = tfds.features.ClassLabel(names=source.superclass_names)
                return self.dataset_info_from_configs(
                    features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label"),
                    homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
                )  # fmt: skip

            def _split_generators(self, dl_manager):
                del dl_manager
                return {"train": examples("train", source.train_files), "test": examples("test", source.test_files)}

            def _generate_examples(self):
                raise NotImplementedError  # abstract in TFDS; _split_generators gives the examples themselves

    builder = Builder(data_dir=str(data_dir), file_format="array_record")
    tfds.disable_progress_bar()
    with redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))


def _encode_png(image: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def find_prepared(source: Source, data_dir: Path) -> Path | None:
    """The newest `data_dir/<name>/<version>` that holds a prepared data set, or None."""
    folders = [path.parent for path in (data_dir / source.name).glob("*/dataset_info.json")]
    # A preparation that was killed leaves incomplete.XXXXXX_3.0.2 behind.
    versions = [folder for folder in folders if re.fullmatch(r"\d+\.\d+\.\d+", folder.name)]
    return max(versions, key=lambda folder: [int(number) for number in folder.name.split(".")], default=None)


def read_prepared(source: Source, folder: Path) -> Dataset:
    """Decodes a prepared data set, in the order of its records.

    Raises:
      InputError: files are damaged, missing or of another data set; names the folder and what is wrong.
    """
    import tensorflow_datasets as tfds

    def wrong(reason: str) -> InputError:
        return InputError(f"data.dir must hold a whole {source.name} prepared by TFDS, got {folder}: {reason}.")

    try:
        builder = tfds.builder_from_directory(str(folder))
        features = builder.info.features
        names = tuple(features["label"].names)
        superclasses = tuple(features["coarse_label"].names) if source.superclass_names else ()
        infos = {split: builder.info.splits[split] for split in ("train", "test")}
    except Exception as error:  # TFDS raises many kinds for a folder it cannot make sense of
        raise wrong(f"{type(error).__name__}: {_one_line(error)}") from error
    if names != source.class_names or superclasses != source.superclass_names:
        raise wrong("its class names are not the official ones")
    splits, pairs = {}, set()
    for split, info in infos.items():
        try:
            images, labels, coarse_labels = _read_split(builder, split, info)
        except _UnreadableError as error:
            raise wrong(f"the {split} records cannot be read: {error}") from error
        splits[split] = Split(images, labels)
        pairs.update(zip(labels.tolist(), coarse_labels.tolist(), strict=True))
    superclass_of = ()
    if superclasses:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise wrong("its images put one class in several superclasses")
        superclass_of = tuple(found.get(label, 0) for label in range(len(names)))
    return Dataset(source.name, splits["train"], splits["test"], names, superclasses, superclass_of)


class _UnreadableError(Exception):
    """A record file is missing, damaged or of another length; the message names it."""


def _read_split(builder, split: str, info) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, labels and superclass labels (0 where the set has none), in the order of the records."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordReader
    from tqdm import tqdm

    n = info.num_examples
    images, labels, coarse_labels = np.empty((n, 32, 32, 3), np.uint8), np.empty(n, np.int32), np.zeros(n, np.int32)
    index, at = 0, ""
    try:
        # TFDS's own decoding of images takes longer.
        records = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
        hidden = not sys.stderr.isatty()
        with tqdm(total=n, desc=f"decoding {split}", unit=" images", leave=False, disable=hidden) as bar:
            for file, length in zip(info.filepaths, info.shard_lengths, strict=True):
                at = f"{file.name}: "
                # The data source trusts dataset_info.json, and would not see records that this leaves out.
                reader = ArrayRecordReader(str(file))
                held = reader.num_records()
                reader.close()
                if held != length:
                    raise ValueError(f"it has {held:,} records, not the {length:,} that dataset_info.json names")
                end = index + length
                while index < end:
                    at = f"{file.name}, record {length - (end - index)} or after: "
                    chunk = records.__getitems__(list(range(index, min(index + 500, end))))
                    for record in chunk:
                        at = f"{file.name}, record {length - (end - index)}: "
                        images[index] = _decode_png(record["image"])
                        labels[index] = record["label"]
                        coarse_labels[index] = record.get("coarse_label", 0)
                        index += 1
                    bar.update(len(chunk))
    except Exception as error:  # array_record raises RuntimeError, Pillow SyntaxError, TFDS what it likes
        raise _UnreadableError(at + _one_line(error)) from error
    return images, labels, coarse_labels


def _decode_png(png: bytes) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        pixels = np.asarray(image)
    if pixels.shape != (32, 32, 3):
        raise ValueError(f"its shape is {pixels.shape}, not (32, 32, 3)")
    return pixels


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
