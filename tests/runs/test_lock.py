"""Two processes in one folder: one trains, the other is refused; whatever only reads changes nothing."""

import json
import os
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from small_runs import timeless

from cifar_jax.errors import InputError
from cifar_jax.runs import train
from cifar_jax.runs.lock import LOCK, locked

HOLD = "import sys, time, pathlib; from cifar_jax.runs.lock import locked\n"
HOLD += "with locked(pathlib.Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(100)"


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of tmp_path/run."""
    (tmp_path / "run").mkdir()
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "run"], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_run_is_refused_and_told_who_is_there(holder, dataset, config, tmp_path):
    with pytest.raises(InputError, match=rf"^--workdir must not be in use, got .*, in which process {holder.pid} on"):
        train.train_and_evaluate(config, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]


def test_the_lock_dies_with_its_process(holder, dataset, config, tmp_path):
    """And the folder that a run left in its first instants bars nobody."""
    holder.kill()
    holder.wait()
    config.train.epochs = 1
    train.train_and_evaluate(config, tmp_path / "run")
    assert json.loads((tmp_path / "run" / LOCK).read_text())["pid"] == os.getpid()
    with locked(tmp_path / "run"):
        pass


@pytest.mark.slow
def test_two_commands_at_once(tmp_path):
    small = ["--config=quickstart", "--config.model.stages=((2,2),(2,2),(2,2))", "--config.data.limit_train=100"]
    small += ["--config.data.limit_test=100", "--config.train.epochs=20", f"--workdir={tmp_path / 'run'}"]
    command = [sys.executable, "main.py", *small]
    both = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    errors = [process.communicate(timeout=300)[1] for process in both]
    codes = [process.returncode for process in both]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, 21))
    assert sorted(codes) == [0, 2] or codes == [0, 0], errors  # the later one may have come when the first was done
    assert all("must not be in use" in error for error, code in zip(errors, codes, strict=True) if code == 2)


def test_evaluation_changes_nothing_and_needs_no_right_to_write(dataset, config, tmp_path):
    """Not even what a run that is under way has not finished: Orbax would clean that up."""
    run = tmp_path / "run"
    config.train.epochs = 1
    train.train_and_evaluate(config, run)
    unfinished = run / "checkpoints" / "2.orbax-checkpoint-tmp-0"
    unfinished.mkdir()
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    time.sleep(0.05)
    with locked(run):  # as the training does
        train.evaluate_run(config, run)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before | {
        run / LOCK: (run / LOCK).stat().st_mtime_ns
    }
    assert timeless(train.train_and_evaluate(config, run).history)


def test_a_folder_that_may_only_be_read_is_evaluated(dataset, config, tmp_path, monkeypatch):
    config.train.epochs = 1
    train.train_and_evaluate(config, tmp_path / "run")

    def refuse(**options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("cifar_jax.runs.workdir.tempfile.TemporaryFile", refuse)
    assert train.evaluate_run(config, tmp_path / "run")["newest"].count == 25
    with pytest.raises(InputError, match="must be a folder that can be written to"):
        train.train_and_evaluate(config, tmp_path / "run")
