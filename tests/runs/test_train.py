"""Whole runs, in this process, on a little synthetic data."""

import json
import math
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from small_runs import saved, stop_in_epoch, timeless

from cifar_jax.devices.interrupt import Interrupted
from cifar_jax.errors import DivergedError, InputError
from cifar_jax.runs import train


def test_outputs(dataset, config, tmp_path, capsys):
    result = train.train_and_evaluate(config, tmp_path / "run")
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} == {
        ".lock", "checkpoints", "config.json", "curves.png", "metrics.jsonl", "starts.jsonl", "tensorboard",
    }  # fmt: skip
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows == result.history
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert set(row) == {
            "epoch", "lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds",
            "images_per_second",
        }  # fmt: skip
        # Accuracies are percentages of exactly 70 and 25 images.
        assert (row["train_accuracy"] * 0.70) % 1 == pytest.approx(0, abs=1e-9) or (
            row["train_accuracy"] * 0.70
        ) % 1 == pytest.approx(1, abs=1e-9)
        assert row["test_accuracy"] % 4 == 0
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert json.loads((run / "config.json").read_text())["model"]["stages"] == [[4, 4], [4, 4], [8, 8]]
    with Image.open(run / "curves.png") as curves:
        assert curves.size[0] >= 800
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("Devices: 1 cpu")
    assert sum(line.startswith("epoch ") for line in out) == 3
    best = result.best
    assert f"Maximum test accuracy {best['test_accuracy']:.2f} % (epoch {best['epoch']})" in out
    assert out[-1].startswith("Total time ")


def test_tensorboard_shows_the_metrics(dataset, config, tmp_path):
    """Read by TensorBoard itself; what a killed start recorded beyond its checkpoint is not shown."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config.train.epochs = 2
    with pytest.raises(Interrupted):
        train.train_and_evaluate(config, tmp_path, check_stop=stop_in_epoch(2, tmp_path))
    result = train.train_and_evaluate(config, tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    for tag, key in (("accuracy/test", "test_accuracy"), ("loss/train", "train_loss"), ("lr", "lr")):
        shown = [(event.step, event.value) for event in events.Scalars(tag)]
        assert shown == [(row["epoch"], pytest.approx(row[key])) for row in result.history]


@pytest.mark.parametrize("epoch", [1, 3])
def test_an_interrupted_run_resumes_bit_for_bit(dataset, config, tmp_path, epoch, capsys):
    like = train.build(config, dataset).state
    whole = train.train_and_evaluate(config, tmp_path / "whole")
    with pytest.raises(Interrupted, match="The same command goes on from there"):
        train.train_and_evaluate(config, tmp_path / "parts", check_stop=stop_in_epoch(epoch, tmp_path / "parts"))
    parts = train.train_and_evaluate(config, tmp_path / "parts")
    assert ("Resuming" in capsys.readouterr().out) == (epoch > 1)
    assert timeless(parts.history) == timeless(whole.history)
    (state, history), (other, _) = (saved(tmp_path / name, like) for name in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, state, other)
    assert timeless(history) == timeless(whole.history)


def test_a_row_beyond_the_checkpoint_is_taken_back(dataset, config, tmp_path):
    """A run killed between writing its metrics and its checkpoint."""
    config.train.epochs = 2
    train.train_and_evaluate(config, tmp_path)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 3, "lr"')
    config.train.epochs = 3
    train.train_and_evaluate(config, tmp_path)
    assert [json.loads(line)["epoch"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]


def test_a_finished_run_is_not_trained_again(dataset, config, tmp_path, capsys):
    first = train.train_and_evaluate(config, tmp_path)
    again = train.train_and_evaluate(config, tmp_path)
    assert again == first
    assert "Nothing left to train: 3 of 3 epochs are done" in capsys.readouterr().out


@pytest.mark.parametrize("whole_epochs", [False, True])
def test_one_compilation_of_each_step(dataset, config, tmp_path, compilations, whole_epochs):
    train.train_and_evaluate(config, tmp_path, whole_epochs=whole_epochs)
    expected = ["jit(update_all)", "jit(score_all)"] if whole_epochs else ["jit(update)", "jit(score)"]
    assert compilations() == expected


def test_newest_and_best_are_kept(dataset, config, tmp_path):
    config.train.epochs = 6
    result = train.train_and_evaluate(config, tmp_path)
    kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {6, result.best["epoch"]}
    totals = train.evaluate_run(config, tmp_path)
    assert totals["best"].accuracy == pytest.approx(result.best["test_accuracy"])
    assert totals["newest"].loss == result.final["test_loss"]
    assert totals["newest"].count == 25


def test_checkpoint_every(dataset, config, tmp_path):
    config.train.checkpoint_every = 2
    with pytest.raises(Interrupted, match="the checkpoint of epoch 2 is kept"):
        train.train_and_evaluate(config, tmp_path, check_stop=stop_in_epoch(3, tmp_path))
    config.train.checkpoint_every = 5
    assert len(train.train_and_evaluate(config, tmp_path).history) == 3


@pytest.mark.parametrize("sampler", ["shuffle", "whole_batches"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_types_and_samplers(dataset, config, tmp_path, dtype, sampler):
    config.dtype, config.data.sampler, config.train.epochs = dtype, sampler, 1
    try:
        row = train.train_and_evaluate(config, tmp_path).final
    finally:
        jax.config.update("jax_enable_x64", False)
    images = 70 if sampler == "shuffle" else 64
    assert row["train_accuracy"] / 100 * images == pytest.approx(round(row["train_accuracy"] / 100 * images))


def test_divergence_stops_the_run_and_keeps_the_checkpoint(dataset, config, tmp_path):
    config.optimizer.name, config.optimizer.lr = "sgd", 0.01
    config.train.epochs = 1
    train.train_and_evaluate(config, tmp_path)
    # The rate is written over, as no single config has both a good first epoch and a bad second one.
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"lr": 0.01', '"lr": 1e+38'))
    config.optimizer.lr, config.train.epochs = 1e38, 2
    with pytest.raises(
        DivergedError,
        match=r"The loss became \S+ in step \d of epoch 2, at learning rate 1e\+38; the checkpoint of epoch 1 is kept",
    ):
        train.train_and_evaluate(config, tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_another_configs_folder_is_refused_and_left_alone(dataset, config, tmp_path):
    config.train.epochs = 1
    train.train_and_evaluate(config, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    config.norm.rule, config.seed = "lecture", 5
    with pytest.raises(InputError, match="whose run has seed=0 where this one has 5"):
        train.train_and_evaluate(config, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_wrong_folders_are_refused(dataset, config, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"^--workdir must be a folder, got .*, where .*file is a file"):
        train.train_and_evaluate(config, tmp_path / "file" / "run")
    with pytest.raises(InputError, match="which has no readable config.json"):
        train.train_and_evaluate(config, tmp_path)
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(InputError, match="must be the folder of a run with --mode=evaluate"):
        train.evaluate_run(config, tmp_path / "none")


def test_a_damaged_checkpoint_is_named(dataset, config, tmp_path):
    config.train.epochs = 1
    train.train_and_evaluate(config, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints/1/state")
    with pytest.raises(InputError, match=r"must hold whole checkpoints, got .*checkpoints/1, which cannot be read"):
        train.train_and_evaluate(config, tmp_path)


def test_a_batch_larger_than_the_data(dataset, config, tmp_path):
    config.data.batch_size, config.train.epochs = 100, 1
    assert math.isfinite(train.train_and_evaluate(config, tmp_path / "padded").final["test_loss"])
    config.data.sampler = "whole_batches"
    with pytest.raises(InputError, match="data.batch_size must be at most the number of training images, 70"):
        train.train_and_evaluate(config, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_platform_without_devices(dataset, config, tmp_path):
    config.platform = "tpu"
    with pytest.raises(InputError, match=r"platform must name devices that JAX finds here \(cpu\)"):
        train.train_and_evaluate(config, tmp_path / "run")
