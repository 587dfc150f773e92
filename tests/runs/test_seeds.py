"""Several seeds in one process, each as if it were alone."""

import jax
import numpy as np
import pytest
from small_runs import saved, stop_in_epoch, timeless

from cifar_jax.devices.interrupt import Interrupted
from cifar_jax.errors import DivergedError, InputError
from cifar_jax.runs import train
from cifar_jax.runs.workdir import read_config


@pytest.mark.parametrize("rng_name", ["jax", pytest.param("torch", marks=pytest.mark.slow)])
def test_each_seed_is_the_run_of_that_seed_alone(dataset, config, tmp_path, compilations, rng_name):
    config.rng, config.seed, config.train.seeds, config.train.epochs = rng_name, 5, 2, 2
    train.train_runs(config, tmp_path / "both", check_stop=lambda: None)
    assert compilations() == ["jit(update)", "jit(score)"]
    config.train.seeds = 1
    like, results = train.build(config, dataset).state, []
    for seed in (5, 6):
        config.seed = seed
        alone = train.train_and_evaluate(config, tmp_path / f"{seed}")
        (state, history), (other, _) = (saved(tmp_path / name, like) for name in (f"both/seed{seed}", f"{seed}"))
        jax.tree.map(np.testing.assert_array_equal, state, other)
        assert timeless(history) == timeless(alone.history)
        assert read_config(tmp_path / f"both/seed{seed}") == read_config(tmp_path / f"{seed}")
        results.append(alone)
    assert results[0].history[0]["train_loss"] != results[1].history[0]["train_loss"]


def test_stopped_seeds_go_on(dataset, config, tmp_path, capsys):
    config.train.seeds, config.train.epochs = 2, 2
    folders = train.seed_folders(config, tmp_path)
    with pytest.raises(Interrupted, match="the checkpoint of epoch 1 is kept in .*seed0"):
        train.train_runs(config, tmp_path, check_stop=stop_in_epoch(2, folders[0]))
    assert not folders[1].exists()
    train.train_runs(config, tmp_path, check_stop=lambda: None)
    out = capsys.readouterr().out
    assert "Resuming the run" in out
    assert "Maximum test accuracy of 2 seeds: " in out
    assert len((folders[1] / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_seed_that_diverges_stops_no_other(dataset, config, tmp_path):
    config.optimizer.name, config.optimizer.lr, config.train.seeds = "sgd", 1e38, 2
    with pytest.raises(DivergedError, match=r"^2 of 2 seeds diverged: The loss .*seed0.* The loss .*seed1"):
        train.train_runs(config, tmp_path, check_stop=lambda: None)


def test_a_folder_of_another_run_among_them_is_refused_first(dataset, config, tmp_path):
    config.train.seeds = 2
    (tmp_path / "seed1").mkdir()
    (tmp_path / "seed1" / "mine").write_text("mine")
    with pytest.raises(InputError, match="seed1', which has no readable config.json"):
        train.train_runs(config, tmp_path, check_stop=lambda: None)
    assert [path.name for path in tmp_path.iterdir()] == ["seed1"]
