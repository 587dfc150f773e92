"""Configs that need more than a start: the CIFAR-10 program's, and the quickstart's without a signal to learn."""

import numpy as np
import pytest
from archives import served

from cifar_jax.data import cifar, shapes
from cifar_jax.runs import build as experiment
from cifar_jax.runs import train
from configs import cifar10_scratch, quickstart


@pytest.mark.slow
def test_the_cifar10_program_from_its_archive_on(server, tmp_path, rng, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source, splits = served(server, tmp_path, "cifar10", rng)
    monkeypatch.setitem(cifar.SOURCES, "cifar10", source)
    config = cifar10_scratch.get_config()
    config.train.epochs = 1
    row = train.train_and_evaluate(config, tmp_path / "run").final
    whole = len(splits["train"][1]) // 64 * 64
    assert row["train_accuracy"] / 100 * whole == pytest.approx(round(row["train_accuracy"] / 100 * whole))
    assert server.offsets == [0]


@pytest.mark.slow
@pytest.mark.parametrize(("shuffled", "low", "high"), [(False, 5, 100), (True, 0, 2.5)])
def test_shuffled_labels_teach_nothing(tmp_path, monkeypatch, shuffled, low, high):
    """Else the test labels would leak. Chance is 1 %; five deviations of 2,000 guesses are 1.1."""
    dataset = shapes.make_shapes()
    if shuffled:
        rng = np.random.default_rng(0)
        dataset = dataset._replace(
            **{
                split: getattr(dataset, split)._replace(labels=rng.permutation(getattr(dataset, split).labels))
                for split in ("train", "test")
            }
        )
    monkeypatch.setattr(experiment, "load_dataset", lambda name, data_dir: dataset)
    config = quickstart.get_config()
    config.train.epochs, config.data.limit_train = 2, 4500
    config.schedule.t_max = 2
    result = train.train_and_evaluate(config, tmp_path / "run")
    assert low <= result.best["test_accuracy"] <= high
