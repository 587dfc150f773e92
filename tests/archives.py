"""Archives of CIFAR in the official binary layout, made here and served on loopback."""

import hashlib
import io
import tarfile

import numpy as np
import pytest
from conftest import REAL_DATA

from cifar_jax.data import cifar

needs_real_data = pytest.mark.skipif(not REAL_DATA.is_dir(), reason=f"the real CIFAR-100 is not at {REAL_DATA}")


def make_archive(path, name, rng, per_file=40):
    """An archive as the data set's authors lay it out. Returns images and labels by split."""
    source, splits = cifar.SOURCES[name], {}
    with tarfile.open(path, "w:gz") as tar:
        for split, files in (("train", source.train_files), ("test", source.test_files)):
            n = per_file * len(files)
            images = rng.integers(0, 256, (n, 32, 32, 3), np.uint8)
            fine = rng.integers(0, len(source.class_names), n, np.uint8)
            labels = np.stack([fine % 20, fine], 1) if source.superclass_names else fine[:, None]
            records = np.concatenate([labels, images.transpose(0, 3, 1, 2).reshape(n, -1)], 1)
            for file, part in zip(files, np.split(records, len(files)), strict=True):
                info = tarfile.TarInfo(f"{source.folder}/{file}")
                info.size = part.nbytes
                tar.addfile(info, io.BytesIO(part.tobytes()))
            splits[split] = (images, fine)
    return splits


def served(server, tmp_path, name, rng):
    path = tmp_path / "www" / f"{name}.tar.gz"
    splits = make_archive(path, name, rng)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return cifar.SOURCES[name]._replace(url=f"{server.url}/{path.name}", sha256=digest), splits
