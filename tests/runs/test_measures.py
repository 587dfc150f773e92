"""What is measured beside the test set: held-out images, and other rules for BatchNorm's running averages."""

import jax
import numpy as np
import pytest
from small_runs import timeless

from cifar_jax.data.dataset import Split
from cifar_jax.errors import InputError
from cifar_jax.runs import build as experiment
from cifar_jax.runs import train


def test_held_out_images_only_measure(dataset, config, tmp_path, monkeypatch, capsys):
    """As without them, to the last bit, but for the metrics that they give."""
    config.train.epochs = 2
    fewer = dataset._replace(train=Split(dataset.train.images[:50], dataset.train.labels[:50]))
    monkeypatch.setattr(experiment, "load_dataset", lambda name, data_dir: fewer)
    without = train.train_and_evaluate(config, tmp_path / "without").history
    monkeypatch.setattr(experiment, "load_dataset", lambda name, data_dir: dataset)
    config.data.holdout = 20
    with_them = train.train_and_evaluate(config, tmp_path / "with").history
    assert "50 training and 20 held-out and 25 test images" in capsys.readouterr().out
    measured = [(row.pop("holdout_loss"), row.pop("holdout_accuracy")) for row in with_them]
    assert timeless(with_them) == timeless(without)
    # 20 images in batches of 10.
    assert all(accuracy * 20 / 100 == pytest.approx(round(accuracy * 20 / 100)) for _, accuracy in measured)
    assert np.isfinite(measured).all()


def test_too_many_held_out_images(dataset, config, tmp_path):
    config.data.holdout = 70
    with pytest.raises(InputError, match=r"^data.holdout must be less than 70, the number of training images, got 70"):
        train.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_compared_rules_give_what_runs_under_them_give(dataset, config, tmp_path):
    config.train.epochs, config.norm.compare = 1, ("lecture", "flax")
    train.train_and_evaluate(config, tmp_path / "all")
    config.train.epochs = 2  # a resumed run goes on with all the averages
    all_three = train.train_and_evaluate(config, tmp_path / "all").history
    config.norm.compare = ()
    for rule in ("torch", "lecture"):
        config.norm.rule, ending = rule, "" if rule == "torch" else f"_{rule}"
        alone = train.train_and_evaluate(config, tmp_path / rule).history
        for row, own in zip(all_three, alone, strict=True):
            assert row["train_loss"] == own["train_loss"]
            assert row[f"test_loss{ending}"] == own["test_loss"]
            assert row[f"test_accuracy{ending}"] == own["test_accuracy"]
    losses = {all_three[-1][f"test_loss{ending}"] for ending in ("", "_lecture", "_flax")}
    assert len(losses) == 3


@pytest.mark.slow
def test_images_in_host_memory_give_the_same_numbers(dataset, config, tmp_path):
    config.train.epochs, config.data.holdout = 2, 15
    here = train.train_and_evaluate(config, tmp_path / "device").history
    assert isinstance(experiment.build(config, dataset).train.images, jax.Array)
    config.data.placement = "host"
    assert isinstance(experiment.build(config, dataset).train.images, np.ndarray)
    assert timeless(train.train_and_evaluate(config, tmp_path / "host").history) == timeless(here)
