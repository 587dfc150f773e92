"""A run that an earlier version made still resumes, is evaluated and predicted from.

`run_e961017.tar.gz` is the folder of a run made at commit e961017 by

    python main.py --config=configs/quickstart.py --config.model.stages="((2,2),(2,2),(2,2))" --config.train.epochs=2
        --config.data.limit_train=300 --config.data.limit_test=100 --config.norm.compare='("lecture",)'
"""

import json
import tarfile

import numpy as np
import pytest
from conftest import ROOT

from cifar_jax.runs import train
from cifar_jax.runs.config import KEYS, flatten, set_from_text
from cifar_jax.runs.workdir import read_config
from cifar_jax.use.trained import compile_probabilities, load_trained


@pytest.fixture
def run(tmp_path):
    """The folder of the run."""
    with tarfile.open(ROOT / "tests" / "runs" / "run_e961017.tar.gz") as archive:
        archive.extractall(tmp_path / "run", filter="data")
    return tmp_path / "run"


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_it_has_every_key_of_today(run):
    assert list(flatten(read_config(run))) == list(KEYS)


def test_a_key_that_it_does_not_know_has_the_meaning_of_then(run):
    saved = json.loads((run / "config.json").read_text())
    del saved["norm"]["compare"], saved["sharding"]
    (run / "config.json").write_text(json.dumps(saved))
    config = flatten(read_config(run))
    assert (config["norm.compare"], config["sharding.data"]) == ([], -1)


def test_it_goes_on_and_is_evaluated(run):
    before, config = rows(run), read_config(run)
    evaluated = train.evaluate_run(config, run)["newest"]
    assert evaluated.loss == pytest.approx(before[1]["test_loss"], rel=1e-5)
    set_from_text(config, "train.epochs", "3")
    result = train.train_and_evaluate(config, str(run))
    assert [row["epoch"] for row in result.history] == [1, 2, 3]
    assert rows(run)[:2] == before


def test_it_predicts(run):
    trained = load_trained(str(run))
    assert trained.epoch == 1
    probabilities = compile_probabilities(trained, 4)(np.zeros((4, 32, 32, 3), np.uint8))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
