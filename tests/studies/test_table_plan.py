"""Which runs are planned, and what is refused before any is trained."""

import json

import pytest
from conftest import ROOT

from cifar_jax.errors import InputError
from cifar_jax.runs.config import flatten
from cifar_jax.runs.config_flags import split_overrides
from cifar_jax.studies.table.lecture import LECTURE
from cifar_jax.studies.table.plan import check, find_configs, plan

SHAPES = ("--config.data.name=shapes",)


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def planned(*overrides, patterns="configs/cnn6_adam.py", seeds=2, holdout=None):
    return plan(find_configs(patterns), split_overrides([*SHAPES, *overrides])[1], seeds=seeds, holdout=holdout)


def test_all_nine_configs_in_the_lectures_order():
    assert [path.stem for path in find_configs("configs/cnn*_*.py")] == list(LECTURE)
    mixed = find_configs("configs/quickstart.py,configs/cnn10_adam.py,configs/cnn6_*.py,configs/cnn6_step.py")
    assert [path.stem for path in mixed] == ["cnn6_adam", "cnn6_step", "cnn6_cosine", "cnn10_adam", "quickstart"]


def test_the_main_runs_come_before_their_companions():
    groups = planned("--config.train.epochs=7", patterns="configs/cnn6_step.py,configs/cnn6_cosine.py")
    assert [(group.name, group.holdout, str(group.run_folder(1))) for group in groups] == [
        ("cnn6_step", 0, "cnn6_step/seed1"),
        ("cnn6_cosine", 0, "cnn6_cosine/seed1"),
        ("cnn6_step", 5000, "cnn6_step/holdout5000/seed1"),
        ("cnn6_cosine", 5000, "cnn6_cosine/holdout5000/seed1"),
    ]
    main, companion = (flatten(groups[place].seeded(1)) for place in (1, 3))
    assert (main["seed"], main["train.epochs"], main["schedule.t_max"], main["data.name"]) == (1, 7, 7, "shapes")
    assert sorted(main["norm.compare"]) == ["flax", "lecture"]
    assert {key for key in main if main[key] != companion[key]} == {"data.holdout", "norm.compare"}
    assert flatten(groups[0].seeded(0))["schedule.t_max"] is None


def test_the_rules_compared_are_those_that_the_run_does_not_keep():
    (group,) = planned("--config.norm.rule=lecture", holdout=0)
    assert sorted(group.config.norm.compare) == ["flax", "torch"]


@pytest.mark.parametrize(
    ("overrides", "holdout", "expected"),
    [((), None, [0, 5000]), (("--config.data.limit_train=200",), None, [0, 20]), ((), 0, [0]), ((), 70, [0, 70])],
)
def test_how_many_images_are_held_out(overrides, holdout, expected):
    assert [group.holdout for group in planned(*overrides, holdout=holdout)] == expected


@pytest.mark.parametrize(
    ("patterns", "overrides", "message"),
    [
        (
            "configs/none*.py",
            (),
            r"--configs must name config files, .*, got 'configs/none\*.py', which matches none\.",
        ),
        ("configs/cnn6_adam.py,{folder}/cnn6_adam.py", (), "--configs must name files of different names, got cnn6_ad"),
        ("{folder}/broken.py", (), r"--config must name a Python file with get_config\(\), got .*broken.py"),
        ("configs/cnn6_adam.py", ("--config.train.epochs=0",), "train.epochs must be an integer of at least 1, got 0"),
        ("configs/cnn6_adam.py", ("--config.train.epoch=1",), "train.epoch is not a config key"),
        ("configs/cnn6_adam.py", ("--config.dtype",), "--config.dtype must be followed by = and a value"),
        ("configs/cnn6_adam.py", ("--config.seed=1",), r"config.seed is the table's to choose \(by --seeds\), got"),
        ("configs/cnn6_adam.py", ("--config.data.holdout=1",), r"config.data.holdout is the table's .*\(by --holdout"),
    ],
)
def test_wrong_configs_are_refused(tmp_path, patterns, overrides, message):
    (tmp_path / "cnn6_adam.py").write_text((ROOT / "configs/cnn6_adam.py").read_text())
    (tmp_path / "broken.py").write_text("def get_config(:")
    with pytest.raises(InputError, match=message) as refused:
        planned(*overrides, patterns=patterns.format(folder=tmp_path))
    assert "\n" not in str(refused.value)


def folder_of(workdir, group, seed, epochs_done=0, **changed):
    """A folder as a run of the group leaves it, but for `changed` keys."""
    folder = workdir / group.run_folder(seed)
    folder.mkdir(parents=True)
    config = group.seeded(seed)
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changed.items()})
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    rows = [{"epoch": epoch, "test_accuracy": 1.0, "seconds": 1.0} for epoch in range(1, epochs_done + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_runs_of_the_same_settings_are_accepted(tmp_path):
    groups = planned("--config.data.limit_train=100")
    for group in groups:
        folder_of(tmp_path, group, 0, epochs_done=30)
        folder_of(tmp_path, group, 1, epochs_done=2, train__epochs=20)
    check(groups, tmp_path)
    assert not list(tmp_path.glob("*.json"))


def test_a_run_of_other_settings_is_refused(tmp_path):
    groups = planned()
    folder_of(tmp_path, groups[1], 1, optimizer__lr=0.5)
    with pytest.raises(
        InputError, match=r"holdout5000/seed1', whose run has optimizer.lr=0.5 where this one has 0.001"
    ):
        check(groups, tmp_path)


def test_a_run_of_more_epochs_is_refused(tmp_path):
    groups = planned("--config.train.epochs=3")
    folder_of(tmp_path, groups[0], 0, epochs_done=4)
    with pytest.raises(
        InputError, match=r"train.epochs must be at least 4, the epochs that the run in .* has, got 3\."
    ):
        check(groups, tmp_path)


def test_data_that_are_not_there_are_refused(tmp_path):
    groups = planned("--config.data.limit_train=100", holdout=100)
    with pytest.raises(InputError, match="data.holdout must be less than 100, the number of training images, got 100"):
        check(groups, tmp_path / "run")
    groups = planned("--config.data.name=cifar100", f"--config.data.dir={tmp_path}")
    with pytest.raises(InputError, match=r"data.dir must be a folder with cifar100/<version>"):
        check(groups, tmp_path / "run")
    assert not (tmp_path / "run").exists()
