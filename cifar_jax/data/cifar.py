"""CIFAR-10 and CIFAR-100: a TFDS builder that needs no TensorFlow, and reading what it or TFDS itself prepared."""

import io
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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
    """Writes an official archive as a TFDS data set (`array_record`) to `data_dir/<name>/3.0.2`, whole or not at all."""
    import tensorflow_datasets as tfds

    def examples(split: str, files: tuple[str, ...]) -> Iterator[tuple[str, dict]]:
        images, labels = read_archive(archive, source, files)
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            key = f"{split}_{number:05d}"
            example = {"id": key, "image": io.BytesIO(_encode_png(image)), "label": int(label[-1])}
            if source.superclass_names:
                example["coarse_label"] = int(label[0])
            yield key, example

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
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))


def _encode_png(image: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def find_prepared(source: Source, data_dir: Path) -> Path | None:
    """The newest `data_dir/<name>/<version>` that holds a prepared data set, or None."""
    versions = sorted(path.parent for path in (data_dir / source.name).glob("*.*.*/dataset_info.json"))
    return max(versions, key=lambda path: [int(n) if n.isdigit() else -1 for n in path.name.split(".")], default=None)


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
        sizes = {split: builder.info.splits[split].num_examples for split in ("train", "test")}
    except Exception as error:  # TFDS raises many kinds for a folder it cannot make sense of
        raise wrong(f"{type(error).__name__}: {_one_line(error)}") from error
    if names != source.class_names or superclasses != source.superclass_names:
        raise wrong("its class names are not the official ones")
    splits, pairs = {}, {}
    for split, size in sizes.items():
        try:
            records = _read_records(builder, split)
        except Exception as error:  # array_record raises RuntimeError and more for damaged files
            raise wrong(f"the {split} records cannot be read: {_one_line(error)}") from error
        if len(records) != size or any(record["image"] is None for record in records):
            raise wrong(f"the {split} records are fewer than the {size:,} that dataset_info.json names")
        try:
            with ThreadPoolExecutor() as pool:
                images = list(pool.map(lambda record: _decode_png(record["image"]), records, chunksize=256))
            splits[split] = Split(np.stack(images), np.array([record["label"] for record in records], np.int32))
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for what is no PNG
            raise wrong(f"an image in {split} cannot be decoded: {_one_line(error)}") from error
        if superclasses:
            pairs.update({record["label"]: record["coarse_label"] for record in records})
    superclass_of = tuple(pairs.get(label, 0) for label in range(len(names))) if superclasses else ()
    return Dataset(source.name, splits["train"], splits["test"], names, superclasses, superclass_of)


def _read_records(builder, split: str) -> list[dict]:
    import tensorflow_datasets as tfds

    # TFDS's own decoding goes through one example at a time.
    data = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    return data.__getitems__(list(range(len(data))))


def _decode_png(png: bytes) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        pixels = np.asarray(image)
    if pixels.shape != (32, 32, 3):
        raise ValueError(f"its shape is {pixels.shape}, not (32, 32, 3)")
    return pixels


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
