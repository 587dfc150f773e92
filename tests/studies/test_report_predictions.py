"""Answers of a run that was trained, and the report of a table with it, on a little synthetic data."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from cifar_jax.data.dataset import Dataset, Split
from cifar_jax.errors import InputError
from cifar_jax.runs import build as experiment
from cifar_jax.runs.train import evaluate_run, train_and_evaluate
from cifar_jax.runs.workdir import read_config
from cifar_jax.studies.table.document import Column, document
from cifar_jax.studies.table.report import predictions, summaries, write
from cifar_jax.studies.table.report.predictions import FILE, run_predictions
from configs import default


def split(rng, n):
    labels = rng.integers(0, 10, n).astype(np.int32)
    images = 20 * labels[:, None, None, None] + rng.integers(0, 60, (n, 32, 32, 3))
    return Split(images.astype(np.uint8), labels)


@pytest.fixture(scope="module")
def dataset():
    """Ten shades of grey; 25 test images, so that the last batch of 10 is ragged."""
    rng = np.random.default_rng(0)
    return Dataset("shapes", split(rng, 70), split(rng, 25), tuple(f"shade {i}" for i in range(10)), (), ())


@pytest.fixture(autouse=True)
def loaded(dataset, monkeypatch):
    write._load.cache_clear()
    for module in (experiment, write):
        monkeypatch.setattr(module, "load_dataset", lambda name, data_dir: dataset)


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    """The folder of a run of two epochs that also keeps the lecture's averages."""
    config = default.get_config()
    config.data.name = "shapes"
    config.data.batch_size = 16
    config.data.eval_batch_size = 10
    config.model.stages = ((4, 4), (4, 4), (8, 8))
    config.norm.compare = ("lecture",)
    config.train.epochs = 2
    folder = tmp_path_factory.mktemp("runs") / "seed0"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "load_dataset", lambda name, data_dir: dataset)
        train_and_evaluate(config, folder)
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "seed0")


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_answers_are_those_that_the_evaluation_counts(folder, dataset):
    answers = run_predictions(folder, 2)
    totals = evaluate_run(read_config(folder), folder)["newest"]
    assert summaries.accuracy(answers) == totals.accuracy == rows(folder)[-1]["test_accuracy"]
    # The evaluation adds up 25 losses in float32; a thousandth of a rounding each is far from another image's loss.
    assert -np.log(answers.label_probabilities).mean() == pytest.approx(totals.loss, rel=1e-5)
    np.testing.assert_array_equal(answers.labels, dataset.test.labels)
    assert answers.epoch == 2
    assert answers.classes.shape == (25, summaries.TOP)


def test_answers_are_kept(folder, monkeypatch):
    first = run_predictions(folder, 2)
    monkeypatch.setattr(predictions, "prepare", lambda *_: pytest.fail("worked out again"))
    for mine, expected in zip(run_predictions(folder, 2), first, strict=True):
        np.testing.assert_array_equal(mine, expected)
    shutil.rmtree(folder / "checkpoints")
    run_predictions(folder, 2)  # of a run whose checkpoints were left on the machine that trained it


def test_kept_answers_of_another_run_or_damaged_ones_are_made_anew(folder):
    first = run_predictions(folder, 2)
    path = folder / FILE
    path.write_bytes(path.read_bytes()[:-40])
    np.testing.assert_array_equal(run_predictions(folder, 2).probabilities, first.probabilities)
    other = json.loads((folder / "config.json").read_text())
    other["seed"] = 1  # now the kept answers are of another config
    (folder / "config.json").write_text(json.dumps(other))
    path_before = path.read_bytes()
    run_predictions(folder, 2)
    assert path.read_bytes() != path_before


def test_a_run_under_way_has_no_answers_yet(folder):
    with pytest.raises(InputError, match=r"must hold the checkpoint of epoch 3, its last one, got 2\."):
        run_predictions(folder, 3)
    assert not (folder / FILE).exists()


def test_a_run_that_was_to_have_more_epochs_has_answers(folder):
    """Its table was written with --epochs, once there were as many."""
    expected = run_predictions(folder, 2)
    config = json.loads((folder / "config.json").read_text())
    config["train"]["epochs"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    (folder / FILE).unlink()
    np.testing.assert_array_equal(run_predictions(folder, 2).probabilities, expected.probabilities)


def table_of(*folders):
    """A table of one config, with one run in each folder."""
    runs = [
        {
            "config": "shades", "seed": seed, "holdout": 0, "folder": folder, "epochs_done": 2, "epochs": 2,
            "status": "done", "message": None, "seconds": 1.0, "origin": 0, "history": history,
        }
        for seed, (folder, history) in enumerate(folders)
    ]  # fmt: skip
    origin = {
        "commit": None, "versions": {"jax": "1"},
        "hardware": {"processor": None, "cores": 2, "memory_gib": 1.0, "devices": ["cpu"]},
    }  # fmt: skip
    settings = {"configs": ["shades.py"], "seeds": len(runs), "holdout": 0, "epochs": None}
    column = Column("shades", "torch", 2, False)
    return document([column], runs, origins=[origin], settings=settings, command="c", commit=None, date="d")


@pytest.mark.slow
def test_the_report_of_a_run(folder, tmp_path, capsys):
    history = rows(folder)
    table = table_of(("seed0", history), ("gone", history))
    out = tmp_path / "results" / "report.html"
    write.write_report(table, tmp_path, out, pictures=True)
    page = out.read_text()
    assert "data:image/png;base64," in page
    assert "gone: no answers on the test set. --workdir must be" in page
    assert f"{history[-1]['test_accuracy_lecture']:.2f}" in page
    figures = {path.stem: path for path in (out.parent / "figures").glob("*.png")}
    expected = {"results", "norm-rules", "accuracy", "loss", "learning-rates"}
    assert set(figures) == expected | {"classes", "confusion", "calibration"}
    for path in figures.values():
        with Image.open(path) as picture:
            assert picture.width >= 1440
            colors = picture.convert("RGB").getcolors(1 << 20)
        assert len(colors) > 20, f"{path.name} is blank"
    assert not list(out.parent.rglob("*.partial"))
    capsys.readouterr()


def test_a_machine_that_does_not_draw_leaves_the_answers_to_one_that_does(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(write.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="got no altair and no vl_convert"):
        write.write_report(table_of(("seed0", rows(folder))), tmp_path, tmp_path / "report.html")
    assert (folder / FILE).exists()
    assert not (tmp_path / "report.html").exists()
