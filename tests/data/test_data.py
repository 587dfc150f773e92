"""CIFAR through TFDS: archives in the official binary layout, made here and served on loopback."""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from archives import make_archive, needs_real_data, served
from conftest import REAL_DATA, ROOT

from cifar_jax import data
from cifar_jax.data import cache, cifar, load_dataset, map_dataset
from cifar_jax.data.dataset import Dataset, Split, check_dataset, take
from cifar_jax.data.download import DownloadError, download
from cifar_jax.errors import InputError

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def prepared(tmp_path, rng):
    """A folder with a small cifar100 in it."""
    make_archive(tmp_path / "archive", "cifar100", rng)
    cifar.prepare(cifar.SOURCES["cifar100"], tmp_path / "archive", tmp_path / "tfds")
    return tmp_path / "tfds"


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_from_the_archive_to_arrays(server, tmp_path, rng, monkeypatch, own_cache, name):
    """Download, prepare, read by TFDS and by us, all with the archive's own pixels and labels."""
    source, splits = served(server, tmp_path, name, rng)
    monkeypatch.setitem(cifar.SOURCES, name, source)
    dataset = load_dataset(name)
    assert dataset.class_names == source.class_names
    for split, (images, labels) in splits.items():
        records = tfds.data_source(name, split=split, data_dir=own_cache / "tfds")
        numbers = [int(record["id"].decode().removeprefix(f"{split}_")) for record in records]
        assert sorted(numbers) == list(range(len(labels)))
        ours = getattr(dataset, split)
        for i, (record, number) in enumerate(zip(records, numbers, strict=True)):
            np.testing.assert_array_equal(ours.images[i], images[number])
            np.testing.assert_array_equal(record["image"], images[number])
            assert ours.labels[i] == record["label"] == labels[number]
            if name == "cifar100":
                assert record["coarse_label"] == labels[number] % 20
    if name == "cifar100":
        present = sorted(set(splits["train"][1].tolist()))
        assert [dataset.superclass_of[label] for label in present] == [label % 20 for label in present]
    server.shutdown()
    again = load_dataset(name)
    np.testing.assert_array_equal(again.test.images, dataset.test.images)


@needs_real_data
def test_the_real_cifar100_and_its_second_start(own_cache, capsys):
    """Decoded once, it is read in less than a second, and without TFDS."""
    dataset = load_dataset("cifar100", str(REAL_DATA))
    assert "Decoding" in capsys.readouterr().out
    pixels = dataset.train.images.reshape(-1, 3)
    np.testing.assert_allclose(pixels.mean(0) / 255, (0.50707516, 0.48654887, 0.44091784), atol=1e-8)
    np.testing.assert_allclose(pixels.std(0) / 255, (0.26733429, 0.25643846, 0.27615047), atol=1e-6)
    assert np.bincount(dataset.train.labels).tolist() == [500] * 100
    assert np.bincount(dataset.test.labels).tolist() == [100] * 100
    assert np.bincount(dataset.superclass_of).tolist() == [5] * 20
    assert dataset.superclass_names[dataset.superclass_of[dataset.class_names.index("maple_tree")]] == "trees"
    again = load_dataset("cifar100", str(REAL_DATA))
    np.testing.assert_array_equal(again.train.images, dataset.train.images)
    assert again.superclass_of == dataset.superclass_of
    code = (
        "import sys, time; from cifar_jax.data import load_dataset; start = time.perf_counter(); "
        f"load_dataset('cifar100', {str(REAL_DATA)!r}); print(time.perf_counter() - start); "
        "print([m for m in ('tensorflow', 'tensorflow_datasets', 'PIL') if m in sys.modules])"
    )
    second = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    seconds, modules = second.stdout.splitlines()
    assert float(seconds) < 1
    assert modules == "[]"
    assert second.stderr == ""


@needs_real_data
def test_our_folders_are_laid_out_as_tfds_lays_them_out(prepared):
    real, ours = (tfds.builder_from_directory(str(d / "cifar100" / "3.0.2")).info for d in (REAL_DATA, prepared))
    assert str(ours.features) == str(real.features)
    assert ours.features["label"].names == real.features["label"].names
    assert ours.features["coarse_label"].names == real.features["coarse_label"].names
    assert (ours.name, str(ours.version), ours.file_format) == (real.name, str(real.version), real.file_format)
    assert ours.supervised_keys == real.supervised_keys


def test_decoded_images_are_cached_and_verified(prepared, own_cache, capsys):
    load_dataset("cifar100", str(prepared))
    (path,) = own_cache.glob("*.npz")
    assert "Decoding" in capsys.readouterr().out
    whole = load_dataset("cifar100", str(prepared))
    assert "Decoding" not in capsys.readouterr().out
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    for content in (bytes(damaged), bytes(damaged[:1000]), b""):
        path.write_bytes(content)
        mended = load_dataset("cifar100", str(prepared))
        assert "Decoding" in capsys.readouterr().out
        np.testing.assert_array_equal(mended.train.images, whole.train.images)
    os.utime(next((prepared / "cifar100" / "3.0.2").glob("*train*")), ns=(0, 0))
    load_dataset("cifar100", str(prepared))
    assert "Decoding" in capsys.readouterr().out
    assert list(own_cache.glob("*")) == [path]


def test_mapped_images_are_the_decoded_ones(prepared, own_cache, capsys):
    """One of many processes reads no image before it touches it; where nothing is kept, it decodes."""
    first = map_dataset("cifar100", str(prepared))
    decoded = load_dataset("cifar100", str(prepared))
    mapped = map_dataset("cifar100", str(prepared))
    assert capsys.readouterr().out.count("Decoding") == 1
    for dataset in (first, mapped):
        assert all(isinstance(split.images, np.memmap) for split in (dataset.train, dataset.test))
        jax.tree.map(np.testing.assert_array_equal, dataset, decoded)
    shutil.rmtree(own_cache)
    own_cache.write_text("a file where the folder should be")
    assert not isinstance(map_dataset("cifar100", str(prepared)).train.images, np.memmap)


def test_a_cache_that_cannot_be_written_stops_nothing(prepared, own_cache, capsys):
    own_cache.parent.mkdir()
    own_cache.write_text("a file where the folder should be")
    assert len(load_dataset("cifar100", str(prepared)).train.labels) == 40
    assert "not kept for the next start" in capsys.readouterr().err


def test_two_starts_may_write_the_cache_at_once(prepared, own_cache):
    folder = prepared / "cifar100" / "3.0.2"
    arrays = {"x": np.arange(100_000)}
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: cache.write_arrays(folder, arrays), range(8)))
    np.testing.assert_array_equal(cache.read_arrays(folder)["x"], arrays["x"])
    assert len(list(own_cache.iterdir())) == 1


def test_the_cache_folder_follows_xdg(monkeypatch, tmp_path):
    assert cache.cache_folder() == tmp_path / "cache" / "cifar_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache.cache_folder().is_absolute()


def test_an_interrupted_download_goes_on(server, tmp_path, rng):
    source, _ = served(server, tmp_path, "cifar10", rng)
    path = tmp_path / "downloads" / "a.tar.gz"
    server.cut = 100_000
    with pytest.raises(DownloadError, match="ended after 100,000 of .* the next start goes on from there"):
        download(source.url, path, sha256=source.sha256)
    assert not path.exists()
    server.cut = None
    download(source.url, path, sha256=source.sha256)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == source.sha256
    assert server.offsets == [0, 100_000]
    download(source.url, path, sha256=source.sha256)
    assert len(server.offsets) == 2


def test_a_part_that_is_too_long_starts_again(server, tmp_path, rng):
    source, _ = served(server, tmp_path, "cifar10", rng)
    (tmp_path / "a.tar.gz.part").write_bytes(bytes(10_000_000))
    download(source.url, tmp_path / "a.tar.gz", sha256=source.sha256)
    assert server.offsets == [10_000_000, 0]


def test_a_wrong_checksum_is_refused_and_not_kept(server, tmp_path, rng):
    source, _ = served(server, tmp_path, "cifar10", rng)
    with pytest.raises(DownloadError, match="another checksum"):
        download(source.url, tmp_path / "a.tar.gz", sha256="0" * 64)
    assert not list(tmp_path.glob("a.tar.gz*"))


def test_a_silent_server_is_not_waited_for(server, tmp_path, rng):
    source, _ = served(server, tmp_path, "cifar10", rng)
    server.stall = 5
    start = time.perf_counter()
    with pytest.raises(DownloadError, match="timed out"):
        download(source.url, tmp_path / "a.tar.gz", sha256=source.sha256, timeout=0.5)
    assert time.perf_counter() - start < 3


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x.tar.gz", "http://no-such-host.invalid/x.tar.gz"])
def test_without_folder_and_network_both_ways_on_are_named(monkeypatch, url, own_cache):
    monkeypatch.setitem(cifar.SOURCES, "cifar100", cifar.SOURCES["cifar100"]._replace(url=url))
    start = time.perf_counter()
    with pytest.raises(InputError, match=r"^data.dir must name a folder .*x.tar.gz: .*--config=configs/quickstart.py"):
        load_dataset("cifar100")
    assert time.perf_counter() - start < 30


def test_an_archive_of_another_layout(server, tmp_path, rng, monkeypatch):
    source, _ = served(server, tmp_path, "cifar10", rng)
    monkeypatch.setitem(cifar.SOURCES, "cifar100", source._replace(name="cifar100", folder="cifar-100-binary"))
    with pytest.raises(InputError, match="cifar100 archive must be in the official binary layout"):
        load_dataset("cifar100")


def test_wrong_folders_are_named(prepared, tmp_path):
    (tmp_path / "empty").mkdir()
    for path, what in (
        (tmp_path / "archive", "which is a file"),
        (tmp_path / "none", "which does not exist"),
        (tmp_path / "empty", "which is empty"),
    ):
        with pytest.raises(InputError, match=rf"^data.dir must be a folder with cifar100/<version> .*, {what}\.$"):
            load_dataset("cifar100", str(path))
    with pytest.raises(InputError, match="with cifar10/<version> .*, which holds cifar100"):
        load_dataset("cifar10", str(prepared))


@pytest.mark.parametrize("keep", [0, 10, 1 << 16, 0.5, 0.99, -1])
def test_a_truncated_record_file_is_named(prepared, keep):
    (path,) = (prepared / "cifar100" / "3.0.2").glob("*train.array_record*")
    size = path.stat().st_size
    os.truncate(path, size - 1 if keep == -1 else int(size * keep) if keep < 1 else keep)
    with pytest.raises(InputError, match=r"^data.dir must hold a whole cifar100 prepared by TFDS, got .*train records"):
        load_dataset("cifar100", str(prepared))


def test_other_damage_is_named(prepared, tmp_path):
    def damaged(change):
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(prepared, tmp_path / "copy")
        change(tmp_path / "copy" / "cifar100" / "3.0.2")
        with pytest.raises(InputError, match=r"^data.dir must hold a whole cifar100 prepared by TFDS, got") as error:
            load_dataset("cifar100", str(tmp_path / "copy"))
        return str(error.value)

    def rename_class(folder):
        names = folder / "label.labels.txt"
        names.write_text(names.read_text().replace("apple", "pear_tree"))

    assert "class names are not the official ones" in damaged(rename_class)
    assert "train records cannot be read" in damaged(lambda folder: next(folder.glob("*train*")).unlink())
    assert "Error" in damaged(lambda folder: (folder / "features.json").write_text("{"))
    assert "Error" in damaged(lambda folder: (folder / "dataset_info.json").write_text("{}"))


def small(**changes):
    images, labels = np.zeros((4, 32, 32, 3), np.uint8), np.arange(4, dtype=np.int32)
    return Dataset("shapes", Split(images, labels), Split(images, labels), tuple("abcd"), ("x",), (0,) * 4)._replace(
        **changes
    )


@pytest.mark.parametrize(("label", "at"), [(4, 1), (-1, 3)])
def test_labels_out_of_range_are_named(label, at):
    check_dataset(small())
    labels = np.arange(4, dtype=np.int32)
    labels[at] = label
    with pytest.raises(
        InputError, match=f"^Labels of shapes must be from 0 to 3, got {label} at position {at} of test"
    ):
        check_dataset(small(test=Split(small().test.images, labels)))


def test_shapes_and_superclasses_are_checked():
    with pytest.raises(InputError, match=r"must be uint8 \[n, 32, 32, 3\] .* float32 \[4, 32, 32, 3\]"):
        check_dataset(small(train=Split(small().train.images.astype(np.float32), small().train.labels)))
    with pytest.raises(InputError, match="got uint8 .* with 3 labels in train"):
        check_dataset(small(train=Split(small().train.images, small().train.labels[:3])))
    with pytest.raises(InputError, match="Superclasses of shapes must be from 0 to 0"):
        check_dataset(small(superclass_of=(0, 0, 1, 0)))


def test_take_the_first_images():
    taken = take(small(), 3, 0)
    assert (len(taken.train.labels), len(taken.test.images)) == (3, 4)
    with pytest.raises(InputError, match="^data.limit_test must be at most 4, the number of images, or 0 .*, got 5"):
        take(small(), 0, 5)


def test_names_are_offered_for_all_sources():
    assert set(data.DATASETS) == {*cifar.SOURCES, "shapes"}
    assert [len(cifar.SOURCES[name].class_names) for name in ("cifar100", "cifar10")] == [100, 10]
