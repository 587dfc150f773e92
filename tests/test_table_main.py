"""`python -m cifar_jax.table` as a user starts it."""

import fcntl
import json
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from test_table_launch import acts, began  # noqa: F401 (a fixture)
from test_train import timeless

from cifar_jax.errors import InputError
from cifar_jax.table import __main__ as command
from cifar_jax.table.plan import find_configs, plan
from cifar_jax.train import train_and_evaluate

SHAPES = ("--config.data.name=shapes", "--seeds=2")


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def reports(monkeypatch):
    """What the report was asked for."""
    reports = []
    monkeypatch.setattr(command, "write_report", lambda *arguments: reports.append(arguments))
    return reports


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--seeds=0",), "--seeds must be an integer of at least 1, got '0'"),
        (("--parallel=two",), "--parallel must be an integer of at least 1, got 'two'"),
        (("--holdout=-1",), "--holdout must be an integer of at least 0, got '-1'"),
        (("--configs", "configs/cnn6_adam.py", "none.py"), "--configs must name config files, such as"),
        (("--epochs=0",), "train.epochs must be an integer of at least 1, got 0"),
        (("--dtype=half",), "dtype must be one of float32, bfloat16, float64, got 'half'"),
        (("--limit_train=few",), "data.limit_train must be an integer of at least 0, got 'few'"),
        (("--seed=3",), "The table's flags are those that --help lists: unrecognized arguments: --seed=3"),
        (("more",), "unrecognized arguments: more"),
        (("--workdir=README.md",), "--workdir must be a folder, got 'README.md/cnn6_adam/seed0', where "),
    ],
)
def test_wrong_flags_are_refused(tmp_path, flags, message):
    with pytest.raises(InputError) as refused:
        command.main(["--configs=configs/cnn6_adam.py", *SHAPES, f"--workdir={tmp_path / 'table'}", *flags])
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "table").exists()


def test_what_a_command_leaves(tmp_path, acts, reports, capsys, monkeypatch):  # noqa: F811
    """A failed run is listed and tried again, and the settings are those that were asked for."""
    flags = ["--configs=configs/cnn6_*.py", *SHAPES, "--epochs=2", "--limit_train=50", f"--workdir={tmp_path}"]
    acts["cnn6_step"] = {"1": "diverge"}
    assert command.main(flags) == 1
    captured = capsys.readouterr()
    # Runs and companions of the config alike.
    assert captured.err == (
        "Failed: cnn6_step/seed1 after epoch 0: The loss became nan.\n"
        "Failed: cnn6_step/holdout5/seed1 after epoch 0: The loss became nan.\n"
    )
    assert captured.out.endswith(f"10 of 12 runs are done; results in {tmp_path}\n")
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["settings"] == {
        "configs": [f"configs/cnn6_{name}.py" for name in ("adam", "step", "cosine")], "seeds": 2, "holdout": 5,
        "epochs": 2, "limit_train": 50, "limit_test": 0, "dtype": None, "overrides": ["--config.data.name=shapes"],
    }  # fmt: skip
    assert table["cells"]["cnn6_step"]["runs"] == 1
    assert reports == [(table, tmp_path, tmp_path / "report.html")]
    assert (tmp_path / "table.md").read_text().startswith("| network |")
    acts.clear()
    monkeypatch.setattr(command, "check", lambda groups, workdir: None)  # the script leaves no config
    assert command.main(flags) == 0
    assert json.loads((tmp_path / "table.json").read_text())["cells"]["cnn6_step"]["runs"] == 2
    assert [seeds for seeds, _ in began(tmp_path / "cnn6_step")] == [[0, 1], [1]]


def test_without_what_draws_there_is_a_table(tmp_path, acts, monkeypatch, capsys):  # noqa: F811
    def refuse(*arguments):
        raise InputError("The report needs altair.")

    monkeypatch.setattr(command, "write_report", refuse)
    flags = ["--configs=configs/cnn6_adam.py", *SHAPES, "--epochs=2", "--holdout=0", f"--workdir={tmp_path}"]
    assert command.main(flags) == 0
    assert capsys.readouterr().err == "No report was written: The report needs altair.\n"
    assert (tmp_path / "table.json").exists()


def test_a_second_command_is_refused(tmp_path, acts, reports):  # noqa: F811
    with open(tmp_path / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="--workdir must not be in use by another such command"):
            command.main(["--configs=configs/cnn6_adam.py", *SHAPES, f"--workdir={tmp_path}"])
    assert not (tmp_path / "cnn6_adam").exists()


TINY = (
    "--configs=configs/cnn6_cosine.py", *SHAPES, "--holdout=0", "--epochs=3", "--limit_train=100", "--limit_test=60",
    "--config.model.stages=((4,4),(4,4),(4,4))", "--config.data.batch_size=20",
)  # fmt: skip
# The command without its report, which takes longer than these runs. Until then it must leave devices to its workers.
RUN = """
import sys
from jax._src import xla_bridge
from cifar_jax.table import __main__ as command
command.write_report = lambda *arguments: print("Device in use:", xla_bridge.backends_are_initialized())
sys.exit(command.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_killed_and_called_again_it_trains_what_main_py_would(tmp_path):
    """Real training. The kill takes the command alone; its worker must end by itself, in the middle of a run."""
    line = [sys.executable, "-c", RUN, *TINY, f"--workdir={tmp_path / 'table'}"]
    runs = tmp_path / "table" / "cnn6_cosine"
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    seen = []
    while not any("seed1  epoch 1/3" in text for text in seen):
        seen.append(process.stdout.readline())
        assert seen[-1], seen
    process.kill()
    process.wait()
    time.sleep(1)
    files = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    time.sleep(1)
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == files
    assert not (runs / "seed1/checkpoints/3").exists()
    out = subprocess.run(line, cwd=ROOT, check=True, timeout=200, stdout=subprocess.PIPE, text=True).stdout
    assert "Device in use: False\n" in out
    table = json.loads((tmp_path / "table" / "table.json").read_text())
    (group,) = plan(
        find_configs("configs/cnn6_cosine.py"),
        ["--config.data.name=shapes", "--config.train.epochs=3", "--config.data.limit_train=100",
         "--config.data.limit_test=60", *TINY[-2:]],
        seeds=2, holdout=0,
    )  # fmt: skip
    alone = train_and_evaluate(group.seeded(1), tmp_path / "alone")
    run = table["runs"][1]
    assert (run["seed"], run["status"], timeless(run["history"])) == (1, "done", timeless(alone.history))
    assert table["cells"]["cnn6_cosine"]["maximum"]["values"][1] == alone.best["test_accuracy"]
    assert set(table["cells"]["cnn6_cosine"]["rules"]) == {"torch", "flax", "lecture"}
    starts = [len((runs / f"seed{seed}" / "starts.jsonl").read_text().splitlines()) for seed in range(2)]
    assert starts == [1, 2], "what was done was left alone"
