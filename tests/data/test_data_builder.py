"""The folder that we prepare stands in for one that TFDS prepared, and a damaged one is told from a whole one."""

import json
import os
import subprocess
import sys
import tarfile
import time
from io import BytesIO

import numpy as np
import pytest
import tensorflow_datasets as tfds
from archives import make_archive, needs_real_data
from conftest import REAL_DATA, ROOT
from PIL import Image

from cifar_jax.data import cache, cifar, fetch, load_dataset
from cifar_jax.data.download import DownloadError, download
from cifar_jax.errors import InputError

SOURCE = cifar.SOURCES["cifar100"]


@pytest.fixture
def prepared(tmp_path, rng):
    """A small cifar100, and the folder with its files."""
    make_archive(tmp_path / "archive", "cifar100", rng)
    cifar.prepare(SOURCE, tmp_path / "archive", tmp_path / "tfds")
    return tmp_path / "tfds" / "cifar100" / "3.0.2"


def record_ids(folder, split="train"):
    builder = tfds.builder_from_directory(str(folder))
    records = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    return [record["id"].decode() for record in records.__getitems__(list(range(len(records))))]


@needs_real_data
def test_records_stand_in_the_order_of_tfds(prepared):
    """Else one seed would give two different runs, by who prepared the folder."""
    official = record_ids(REAL_DATA / "cifar100" / "3.0.2")
    ours = record_ids(prepared)
    assert ours == [name for name in official if int(name.removeprefix("train_")) < len(ours)]


@needs_real_data
def test_real_pixels_survive_our_archive_and_builder(tmp_path):
    """Real images, put back into an archive of the official layout, come out of our builder as they were."""
    official = tfds.builder_from_directory(str(REAL_DATA / "cifar100" / "3.0.2"))
    wanted = {}
    with tarfile.open(tmp_path / "archive", "w:gz") as tar:
        for split, file in (("train", "train.bin"), ("test", "test.bin")):
            wanted[split] = official.as_data_source(split=split).__getitems__(list(range(50)))
            data = b"".join(
                bytes([r["coarse_label"], r["label"]]) + r["image"].transpose(2, 0, 1).tobytes() for r in wanted[split]
            )
            info = tarfile.TarInfo(f"cifar-100-binary/{file}")
            info.size = len(data)
            tar.addfile(info, BytesIO(data))
    cifar.prepare(SOURCE, tmp_path / "archive", tmp_path / "tfds")
    folder = tmp_path / "tfds" / "cifar100" / "3.0.2"
    dataset = cifar.read_prepared(SOURCE, folder)
    for split, records in wanted.items():
        for name, image, label in zip(record_ids(folder, split), *getattr(dataset, split), strict=True):
            record = records[int(name.split("_")[1])]
            np.testing.assert_array_equal(image, record["image"])
            assert label == record["label"]
            assert dataset.superclass_of[label] == record["coarse_label"]


def test_preparing_prints_nothing_of_tfds(tmp_path, rng, capfd):
    make_archive(tmp_path / "archive", "cifar10", rng)
    cifar.prepare(cifar.SOURCES["cifar10"], tmp_path / "archive", tmp_path / "tfds")
    cifar.read_prepared(cifar.SOURCES["cifar10"], tmp_path / "tfds" / "cifar10" / "3.0.2")
    assert capfd.readouterr() == ("", "")


def test_a_killed_preparation_is_not_taken_for_a_whole_one(prepared):
    left = prepared.with_name("incomplete.ABCDEF_3.0.2")
    prepared.rename(left)
    assert cifar.find_prepared(SOURCE, prepared.parents[1]) is None
    left.rename(prepared)
    (prepared.with_name("3.0.10")).mkdir()
    (prepared.with_name("3.0.10") / "dataset_info.json").touch()
    assert cifar.find_prepared(SOURCE, prepared.parents[1]).name == "3.0.10"


def set_length(folder, length):
    path = folder / "dataset_info.json"
    info = json.loads(path.read_text())
    next(split for split in info["splits"] if split["name"] == "train")["shardLengths"] = [str(length)]
    path.write_text(json.dumps(info))


@pytest.mark.parametrize("length", [39, 41])
def test_counts_must_be_those_of_the_info(prepared, length):
    set_length(prepared, length)
    with pytest.raises(
        InputError, match=rf"train.array_record-00000-of-00001: it has 40 records, not the {length} that"
    ):
        cifar.read_prepared(SOURCE, prepared)


def test_a_missing_split_is_named(prepared):
    path = prepared / "dataset_info.json"
    path.write_text(path.read_text().replace('"name": "test"', '"name": "tset"'))
    with pytest.raises(InputError, match="Unknown split 'test'"):
        cifar.read_prepared(SOURCE, prepared)


def test_damage_in_the_middle_names_the_file(prepared):
    (path,) = prepared.glob("*train.array_record*")
    content = bytearray(path.read_bytes())
    content[20_000:20_008] = bytes(8)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"cifar100-train.array_record-00000-of-00001, record 0 or after: Corrupted"):
        cifar.read_prepared(SOURCE, prepared)


@pytest.mark.parametrize(
    ("png", "what"),
    [
        (b"no PNG at all", "record 7: cannot identify image file"),
        ("cut", "record 7: "),
        ((16, 16), r"record 7: its shape is \(16, 16, 3\), not \(32, 32, 3\)"),
    ],
)
def test_an_image_that_cannot_be_used_is_named(prepared, monkeypatch, png, what):
    if not isinstance(png, bytes):
        buffer = BytesIO()
        Image.fromarray(np.zeros((*(png if png != "cut" else (32, 32)), 3), np.uint8)).save(buffer, "PNG")
        png = buffer.getvalue()[: 60 if png == "cut" else None]
    decode, calls = cifar._decode_png, iter(range(1000))
    monkeypatch.setattr(cifar, "_decode_png", lambda data: decode(png if next(calls) == 7 else data))
    with pytest.raises(InputError, match=rf"^data.dir must hold .*train.array_record-00000-of-00001, {what}"):
        cifar.read_prepared(SOURCE, prepared)


def test_a_class_in_two_superclasses_is_refused(tmp_path):
    with tarfile.open(tmp_path / "archive", "w:gz") as tar:
        for file, labels in (("train.bin", [(0, 5), (1, 6)]), ("test.bin", [(2, 5)])):
            data = b"".join(bytes(pair) + bytes(3072) for pair in labels)
            info = tarfile.TarInfo(f"cifar-100-binary/{file}")
            info.size = len(data)
            tar.addfile(info, BytesIO(data))
    cifar.prepare(SOURCE, tmp_path / "archive", tmp_path / "tfds")
    with pytest.raises(InputError, match="put one class in several superclasses"):
        cifar.read_prepared(SOURCE, tmp_path / "tfds" / "cifar100" / "3.0.2")


def test_a_label_out_of_range_is_named(prepared, monkeypatch):
    read = cifar._read_split

    def wrong(builder, split, info):
        images, labels, coarse_labels = read(builder, split, info)
        labels[3], coarse_labels[3] = 100, 0
        return images, labels, coarse_labels

    monkeypatch.setattr(cifar, "_read_split", wrong)
    with pytest.raises(InputError, match="^Labels of cifar100 must be from 0 to 99, got 100 at position 3 of train"):
        load_dataset("cifar100", str(prepared.parents[1]))


@pytest.mark.parametrize("path", ["~no-such-user/x", "x" * 5000, "null\0byte"])
def test_what_cannot_be_a_folder_is_named(path):
    with pytest.raises(InputError, match=r"^data.dir must be a folder with cifar100/<version>"):
        load_dataset("cifar100", path)


def test_no_damage_to_the_cache_goes_unseen(prepared):
    """Every byte of the table of contents and of the headers, which no checksum covers, and some of the rest."""
    arrays = {"a": np.arange(3000, dtype=np.int32), "b": np.ones((40, 2), np.uint8)}
    cache.write_arrays(prepared, arrays)
    path = cache.cache_path(prepared)
    whole = path.read_bytes()
    seen = 0
    for at in [*range(0, 1000, 3), *range(1000, len(whole), 501), *range(len(whole) - 300, len(whole))]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        read = cache.read_arrays(prepared)
        if read is None:
            seen += 1
        else:  # a date, say
            assert sorted(read) == ["a", "b"]
            for name, array in read.items():
                np.testing.assert_array_equal(array, arrays[name])
                assert array.dtype == arrays[name].dtype
    assert seen > 200


def test_a_full_disk_leaves_no_half_cache(prepared, own_cache, monkeypatch, capsys):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    cache.write_arrays(prepared, {"x": np.zeros(9)})
    assert list(own_cache.iterdir()) == []
    assert capsys.readouterr().err.count("\n") == 1


def test_what_killed_writers_left_is_removed(prepared, own_cache):
    own_cache.mkdir(parents=True)
    for name in ("old.partial", "new.partial"):
        (own_cache / name).touch()
    os.utime(own_cache / "old.partial", (0, 0))
    cache.write_arrays(prepared, {"x": np.zeros(9)})
    assert {path.suffix for path in own_cache.iterdir()} == {".npz", ".partial"}
    assert not (own_cache / "old.partial").exists()


def test_a_download_folder_that_cannot_be_written_is_an_input_error(own_cache):
    own_cache.parent.mkdir()
    own_cache.write_text("a file where the folder should be")
    with pytest.raises(InputError, match=r"^data.dir must name a folder .*File exists.*--config.data.name=shapes\.$"):
        fetch(SOURCE)


def test_a_damaged_part_starts_again(server, tmp_path):
    (tmp_path / "www" / "x").write_bytes(b"12345678")
    (tmp_path / "x.part").write_bytes(b"zzzz")
    download(
        f"{server.url}/x", tmp_path / "x", sha256="ef797c8118f02dfb649607dd5d3f8c7623048c9c063d532cc95c5ed7a898a64f"
    )
    assert (tmp_path / "x").read_bytes() == b"12345678"
    assert server.offsets == [4, 0]


def test_a_refused_connection_ends_at_once(tmp_path):
    start = time.perf_counter()
    with pytest.raises(DownloadError, match="refused"):
        download("http://127.0.0.1:9/x", tmp_path / "x", sha256="")
    assert time.perf_counter() - start < 5


def test_only_one_process_prepares(tmp_path, own_cache):
    """The second waits until the first is done, and then finds its folder."""
    code = "from cifar_jax.data.cache import only_process\nwith only_process('cifar10'): print('got it', flush=True)"
    with cache.only_process("cifar10"):
        other = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert other.stdout.readline().startswith("Waiting for another process")
        time.sleep(0.3)
        assert other.poll() is None
    assert other.communicate(timeout=20)[0] == "got it\n"
