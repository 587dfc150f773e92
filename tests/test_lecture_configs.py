"""Each config of the lecture's table trains and evaluates 400 images; so does the CIFAR-10 program, from an archive."""

import importlib
import json

import numpy as np
import pytest
from conftest import REAL_DATA
from test_config import LECTURE
from test_data import served, server  # noqa: F401  (a fixture)

from cifar_jax import experiment, train
from cifar_jax.data import cifar, shapes
from configs import cifar10_scratch, quickstart


@pytest.mark.parametrize("name", LECTURE)
def test_a_lecture_config_trains_400_images(name, tmp_path):
    config = importlib.import_module(f"configs.{name}").get_config()
    if REAL_DATA.is_dir():
        config.data.dir = str(REAL_DATA)
    else:
        config.data.name = "shapes"
    config.data.limit_train = config.data.limit_test = 400
    config.train.epochs = 1
    result = train.train_and_evaluate(config, tmp_path / "run")
    (row,) = result.history
    # Untrained, the loss is ln(100) = 4.6; two steps at the lecture's rates do not take it far.
    assert 4 < row["train_loss"] < 6
    assert np.isfinite(row["test_loss"])
    for phase in ("train", "test"):
        assert row[f"{phase}_accuracy"] * 4 == pytest.approx(round(row[f"{phase}_accuracy"] * 4))  # of exactly 400
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"]["limit_train"] == 400


def test_the_cifar10_program_from_its_archive_on(server, tmp_path, rng, monkeypatch):  # noqa: F811
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source, splits = served(server, tmp_path, "cifar10", rng)
    monkeypatch.setitem(cifar.SOURCES, "cifar10", source)
    config = cifar10_scratch.get_config()
    config.train.epochs = 1
    row = train.train_and_evaluate(config, tmp_path / "run").final
    whole = len(splits["train"][1]) // 64 * 64
    assert row["train_accuracy"] / 100 * whole == pytest.approx(round(row["train_accuracy"] / 100 * whole))
    assert server.offsets == [0]


@pytest.mark.parametrize(("shuffled", "low", "high"), [(False, 10, 100), (True, 0, 3)])
def test_shuffled_labels_teach_nothing(tmp_path, monkeypatch, shuffled, low, high):
    """Else the test labels would leak. Chance is 1 %; three deviations of 2,000 guesses are 0.7."""
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
    config.train.epochs, config.data.limit_train = 2, 5000
    config.schedule.t_max = 2
    result = train.train_and_evaluate(config, tmp_path / "run")
    assert low <= result.best["test_accuracy"] <= high
