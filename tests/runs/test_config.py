import math
import re
import subprocess
import sys

import ml_collections
import pytest
from conftest import ROOT
from small_runs import LECTURE

from cifar_jax.errors import InputError
from cifar_jax.runs.config import (
    FREE_ON_RESUME,
    KEYS,
    default_config,
    first_difference,
    flatten,
    set_from_text,
    unknown_key,
    validate,
)
from cifar_jax.runs.config_file import load_config

NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


def get_config(name):
    return load_config(f"configs/{name}.py")


def changed(**overrides):
    config = default_config()
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in overrides.items()})
    return config


def test_there_is_a_config_for_each_cell_of_the_lectures_table():
    assert set(NAMES) == {*LECTURE, "default", "quickstart", "cifar10_scratch"}


@pytest.mark.parametrize("name", NAMES)
def test_every_config_is_valid_and_has_every_key(name):
    config = get_config(name)
    validate(config)
    assert list(flatten(config)) == list(KEYS)


@pytest.mark.parametrize("name", LECTURE)
def test_lecture_recipes(name):
    config = get_config(name)
    network, recipe = name.rsplit("_", 1)
    assert (config.data.batch_size, config.train.epochs, config.data.augment) == (200, 30, "flip")
    assert (config.model.name, config.data.image_size) == (network.removesuffix("_64"), 64 if "64" in name else 32)
    optimizer, schedule = config.optimizer, config.schedule
    if recipe == "adam":
        assert (optimizer.name, optimizer.lr, optimizer.weight_decay, schedule.name) == ("adam", 0.001, 0, "constant")
    else:
        assert (optimizer.name, optimizer.lr, optimizer.momentum, optimizer.weight_decay) == ("sgd", 0.005, 0.9, 5e-4)
        assert schedule.name == recipe
    if recipe == "step":
        assert (schedule.step_size, schedule.gamma) == (10, 0.5)
    if recipe == "cosine":
        config.train.epochs = 7
        assert schedule.t_max == 7
        schedule.t_max = 3
        assert config.train.epochs == 7


WRONG = [
    ("seed", -1, "an integer from 0 to 2147483647"),
    ("rng", "numpy", "one of jax, torch"),
    ("dtype", "float16", "one of float32, bfloat16, float64"),
    ("platform", "cuda", "one of auto, cpu, gpu, tpu"),
    ("data.name", "cifar", "one of cifar100, cifar10, shapes"),
    ("data.image_size", 4, "an integer from 8 to 512"),
    ("data.batch_size", 0, "an integer of at least 1"),
    ("data.eval_batch_size", -5, "an integer of at least 1"),
    ("data.limit_train", -1, "an integer of at least 0"),
    ("data.holdout", -1, "an integer of at least 0"),
    ("data.placement", "disk", "one of auto, device, host"),
    ("data.augment", "mirror", "one of flip, flip_first_half, none"),
    ("data.sampler", "", "one of shuffle, whole_batches"),
    ("model.name", "resnet", "one of cnn6, cnn10"),
    ("model.stages", ((8, 0),), r"\(\) or widths such as"),
    ("model.stages", (8, 8), r"\(\) or widths such as"),
    ("model.init", "zeros", "one of torch, flax"),
    ("norm.rule", "keras", "one of torch, flax, lecture"),
    ("norm.momentum", 1.5, "a number from 0 to 1, or None"),
    ("norm.epsilon", 0.0, "a finite number above 0"),
    ("norm.compare", ("keras",), r"\(\) or rules such as"),
    ("norm.compare", ("torch",), "rules other than norm.rule=torch, each once"),
    ("norm.compare", ("flax", "flax"), "rules other than norm.rule=torch, each once"),
    ("optimizer.name", "adamw", "one of sgd, adam"),
    ("optimizer.lr", math.nan, "a finite number above 0"),
    ("optimizer.lr", math.inf, "a finite number above 0"),
    ("optimizer.lr", 0.0, "a finite number above 0"),
    ("optimizer.momentum", 1.0, "a number from 0 to below 1"),
    ("optimizer.weight_decay", -1e-4, "a finite number of at least 0"),
    ("optimizer.b2", 1.0, "a number from 0 to below 1"),
    ("optimizer.eps", -1.0, "a finite number above 0"),
    ("schedule.name", "linear", "one of constant, step, cosine"),
    ("schedule.step_size", 0, "an integer of at least 1"),
    ("schedule.gamma", 0.0, "a finite number above 0"),
    ("schedule.t_max", 0, "an integer of at least 1, or None"),
    ("schedule.calls_per_epoch", 3, "an integer from 1 to 2"),
    ("train.epochs", -1, "an integer of at least 1"),
    ("train.checkpoint_every", 0, "an integer of at least 1"),
    ("train.seeds", 0, "an integer from 1 to 1000"),
    ("norm.sync", "local", "one of global, per_replica"),
    ("sharding.data", 0, "-1 or an integer of at least 1"),
]


@pytest.mark.parametrize(("key", "value", "takes"), WRONG)
def test_a_wrong_value_is_named(key, value, takes):
    shown = list(map(list, value)) if key == "model.stages" and isinstance(value[0], tuple) else value
    shown = list(shown) if isinstance(shown, tuple) else shown
    with pytest.raises(InputError, match=f"^{key} must be {takes}.*, got {re.escape(repr(shown))}[.]$"):
        validate(changed(**{key: value}))


def test_every_key_has_a_wrong_value_above():
    free = {"data.dir", "data.normalize", "data.limit_test", "optimizer.b1"}
    assert {key for key, _, _ in WRONG} | free == set(KEYS)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"schedule.name": "cosine"}, "schedule.t_max must be .* with schedule.name=cosine, got None"),
        ({"model.stages": ((8, 8), (8, 8))}, "model.stages must be .* laid out like cnn6's"),
        ({"model.name": "cnn10", "data.image_size": 8}, "data.image_size must be at least 16 .* cnn10, got 8"),
        ({"rng": "torch", "data.sampler": "whole_batches"}, "data.sampler must be shuffle with rng=torch.*whole_batch"),
        (
            {"norm.sync": "per_replica"},
            "sharding.data must be the number of devices with norm.sync=per_replica.*, got -1",
        ),
        ({"rng": "torch", "model.init": "flax"}, "model.init must be torch with rng=torch, got 'flax'"),
    ],
)
def test_a_wrong_combination_is_named(overrides, message):
    with pytest.raises(InputError, match=message):
        validate(changed(**overrides))


def test_missing_and_unknown_keys_are_named():
    config = default_config()
    del config.optimizer.lr
    with pytest.raises(InputError, match=r"^optimizer.lr must be .*, got nothing"):
        validate(config)
    config = default_config()
    config.optimizer.learning_rate = 0.1
    with pytest.raises(InputError, match=r"^optimizer.learning_rate is not a config key"):
        validate(config)


def test_resuming_compares_all_that_matters():
    saved = flatten(default_config())
    assert first_difference(default_config(), saved) is None
    assert first_difference(changed(**{"optimizer.lr": 0.1, "train.epochs": 3}), saved) == ("optimizer.lr", 0.1, 0.001)
    for key, value in zip(FREE_ON_RESUME, ("elsewhere", "host", 4, 99, 5), strict=True):
        assert first_difference(changed(**{key: value}), saved) is None
    replicas = {"norm.sync": "per_replica", "sharding.data": 2}
    fewer = first_difference(changed(**replicas), flatten(changed(**{**replicas, "sharding.data": 4})))
    assert fewer == ("sharding.data", 2, 4)
    del saved["norm.rule"]
    assert first_difference(default_config(), saved) == ("norm.rule", "torch", None)


def test_a_config_survives_json():
    config = changed(**{"model.stages": ((8, 8), (16, 16), (8, 8)), "norm.momentum": 0.5})
    again = ml_collections.ConfigDict(ml_collections.ConfigDict(config.to_dict()).to_dict())
    assert flatten(config) == flatten(again)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.data.image_size=33.5", "data.image_size must be an integer from 8 to 512, got 33.5."),
        ("--config.optimizer.lr=fast", "optimizer.lr must be a finite number above 0, got 'fast'."),
        ("--config.data.normalize=7", "data.normalize must be True or False, got 7."),
        ("--config.optimizer.learning_rate=1", "optimizer.learning_rate is not a config key; "),
        ("--config.data.batchsize=1", "Did you mean data.batch_size?"),
        ("--confg=configs/default.py", "python -m cifar_jax train does not take --confg=configs/default.py"),
        ("--config=configs/none.py", "--config must name a config file or one of cifar10_scratch, cnn10_64_adam, "),
        ("--config=README.md", "--config must name a Python file with get_config(), got 'README.md': "),
        ("--mode=test", "--mode must be one of train, evaluate, predict, got 'test'."),
        ("train", "python -m cifar_jax train does not take train"),
    ],
)
def test_wrong_flags_end_in_one_sentence(argument, message):
    done = subprocess.run([sys.executable, "main.py", argument], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("norm.momentum", "None", None),
        ("norm.momentum", "0.25", 0.25),
        ("optimizer.lr", "1", 1.0),
        ("optimizer.lr", "1e-3", 0.001),
        ("model.stages", "((4,4),(4,4),(4,4))", ((4, 4), (4, 4), (4, 4))),
        ("norm.compare", "('lecture',)", ("lecture",)),
        ("data.normalize", "false", False),
        ("data.dir", "123", "123"),
        ("schedule.t_max", "7", 7),
    ],
)
def test_a_key_takes_what_the_command_line_says(key, text, value):
    """The second time replaces the first, and a number of another type is converted."""
    config = default_config()
    for _ in range(2):
        set_from_text(config, key, text)
    section, name = key.split(".")
    assert (config[section][name], type(config[section][name])) == (value, type(value))


def test_a_key_that_follows_another_can_be_set(tmp_path):
    config = load_config("quickstart", [("train.epochs", "7")])
    assert config.schedule.t_max == 7
    config = load_config("quickstart", [("schedule.t_max", "3"), ("train.epochs", "7")])
    assert (config.schedule.t_max, config.train.epochs) == (3, 7)


@pytest.mark.parametrize("text", ["9" * 400, "9" * 5000, "(" * 10_000, "[" * 90_000 + "]" * 90_000, "-1", "1.0", "é"])
def test_absurd_values_are_refused_and_not_repeated_whole(text):
    with pytest.raises(InputError, match="^train.epochs must be an integer of at least 1") as refused:
        set_from_text(default_config(), "train.epochs", f"-{text}" if text.isdigit() else text)
    assert len(str(refused.value)) < 250


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("data.batchsize", "data.batch_size"),
        ("lr", "optimizer.lr"),
        ("train.batch_size", "data.batch_size"),
        ("model.activation", None),
        ("optimizer.learning_rate", None),
        ("norm.ruel", "norm.rule"),
        ("x", None),
    ],
)
def test_hints_are_right_or_absent(key, hint):
    assert unknown_key(key).endswith(f" Did you mean {hint}?" if hint else "lists them all.")


def test_a_config_file_that_fails_is_named(tmp_path):
    (tmp_path / "mine.py").write_text("def get_config():\n    raise ValueError('some\\n  words')\n")
    with pytest.raises(InputError, match=r"^--config must name a Python .*mine.py': ValueError: some words\.$"):
        load_config(str(tmp_path / "mine.py"))


def test_a_file_is_found_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").write_text("not Python")
    with pytest.raises(InputError, match="get_config"):
        load_config("quickstart")
