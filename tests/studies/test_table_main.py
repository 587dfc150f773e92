"""`python -m cifar_jax table` as a user starts it."""

import fcntl
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from processes import finish, free_port, start
from small_runs import timeless
from table_workers import began

from cifar_jax.devices.distributed import LOST
from cifar_jax.errors import InputError
from cifar_jax.runs.config_flags import split_overrides
from cifar_jax.runs.train import train_and_evaluate
from cifar_jax.studies.table import command
from cifar_jax.studies.table.plan import find_configs, plan

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
        (("--seed=3",), "python -m cifar_jax table does not take --seed=3"),
        (("more",), "python -m cifar_jax table does not take more"),
        (("--workdir=README.md",), "--workdir must be a folder, got 'README.md/cnn6_adam/seed0', where "),
    ],
)
def test_wrong_flags_are_refused(tmp_path, flags, message):
    with pytest.raises(InputError) as refused:
        command.main(["--configs=configs/cnn6_adam.py", *SHAPES, f"--workdir={tmp_path / 'table'}", *flags])
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "table").exists()


def test_what_a_command_leaves(tmp_path, acts, reports, capsys, monkeypatch):
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


def test_without_what_draws_there_is_a_table(tmp_path, acts, monkeypatch, capsys):
    def refuse(*arguments):
        raise InputError("The report needs altair.")

    monkeypatch.setattr(command, "write_report", refuse)
    flags = ["--configs=configs/cnn6_adam.py", *SHAPES, "--epochs=2", "--holdout=0", f"--workdir={tmp_path}"]
    assert command.main(flags) == 0
    assert capsys.readouterr().err == "No report was written: The report needs altair.\n"
    assert (tmp_path / "table.json").exists()


def test_a_second_command_is_refused(tmp_path, acts, reports):
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
import runpy
from jax._src import xla_bridge
from cifar_jax.studies.table.report import write
write.write_report = lambda *arguments: print("Device in use:", xla_bridge.backends_are_initialized())
runpy.run_module("cifar_jax.table", run_name="__main__")
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
        split_overrides(
            ["--config.data.name=shapes", "--config.train.epochs=3", "--config.data.limit_train=100",
             "--config.data.limit_test=60", *TINY[-2:]]
        )[1],
        seeds=2, holdout=0,
    )  # fmt: skip
    alone = train_and_evaluate(group.seeded(1), tmp_path / "alone")
    run = table["runs"][1]
    assert (run["seed"], run["status"], timeless(run["history"])) == (1, "done", timeless(alone.history))
    assert table["cells"]["cnn6_cosine"]["maximum"]["values"][1] == alone.best["test_accuracy"]
    assert set(table["cells"]["cnn6_cosine"]["rules"]) == {"torch", "flax", "lecture"}
    starts = [len((runs / f"seed{seed}" / "starts.jsonl").read_text().splitlines()) for seed in range(2)]
    assert starts == [1, 2], "what was done was left alone"


def start_table_job(processes, *workdirs):
    """The table as a job of so many processes, each with the next of these folders; three runs of ten epochs."""
    flags = ("--seeds=3", "--epochs=10", f"--coordinator=localhost:{free_port()}", f"--processes={processes}")
    return [
        start("-c", RUN, *TINY, *flags, f"--process_id={i}", f"--workdir={workdirs[i % len(workdirs)]}")
        for i in range(processes)
    ]


def seed_at_work(process):
    """The seed of the run that this process of a job trains now; None while it trains none."""
    pids = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for argument in (part for pid in pids for part in Path(f"/proc/{pid}/cmdline").read_text().split("\0")):
        if argument.startswith("--seeds="):
            return int(argument.partition("=")[2])
    return None


def rows_of(runs, seed):
    path = runs / f"seed{seed}" / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.slow
def test_a_job_shares_the_runs_out_and_takes_up_what_a_lost_process_left(tmp_path):
    """Real training: three processes, one of which is killed in the middle of a run; then two."""
    runs = tmp_path / "cnn6_cosine"
    job = start_table_job(3, tmp_path)
    end = time.monotonic() + 200
    while (seed := seed_at_work(job[2])) is None or not rows_of(runs, seed):
        assert time.monotonic() < end
        assert all(process.poll() is None for process in job), [finish(process) for process in job]
        time.sleep(0.02)
    job[2].kill()
    killed = time.monotonic()
    ended = [finish(process) for process in job]
    assert time.monotonic() - killed < 60
    assert [code for code, _, _ in ended[:2]] == [LOST, LOST], ended
    assert "Error: Process 2 of 3 was lost" in ended[0][2]
    time.sleep(1)  # their workers end with them
    starts = [len((runs / f"seed{seed}" / "starts.jsonl").read_text().splitlines()) for seed in range(3)]
    done = {each for each in range(3) if (runs / f"seed{each}/checkpoints/10").exists()}
    assert seed not in done

    ended = [finish(process) for process in start_table_job(2, tmp_path)]
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert f"{len(done)} of 3 runs are done\n" in ended[0][1]
    assert f"3 of 3 runs are done; results in {tmp_path}\nDevice in use: False\n" in ended[0][1]
    assert ended[1][1] == ""
    for seed in range(3):
        again = len((runs / f"seed{seed}" / "starts.jsonl").read_text().splitlines()) - starts[seed]
        assert again == (seed not in done), "only what was not done is started again"
        assert [json.loads(row)["epoch"] for row in rows_of(runs, seed)] == list(range(1, 11))
    table = json.loads((tmp_path / "table.json").read_text())
    assert [run["status"] for run in table["runs"]] == ["done"] * 3
    assert table["cells"]["cnn6_cosine"]["runs"] == 3


@pytest.mark.slow
def test_a_job_whose_processes_see_different_folders_is_refused(tmp_path):
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "lock").write_text("of an earlier command")
    ended = [finish(process) for process in start_table_job(2, tmp_path / "here", tmp_path / "there")]
    assert [code for code, _, _ in ended] == [2, 2]
    for _, _, err in ended:
        assert "--workdir (by the mark in its file 'lock') must be the same in all 2 processes, got '" in err
    assert not (tmp_path / "here" / "cnn6_cosine").exists()


@pytest.mark.slow
def test_a_stop_of_one_process_stops_the_whole_job(tmp_path):
    runs = tmp_path / "cnn6_cosine"
    job = start_table_job(2, tmp_path)
    end = time.monotonic() + 200
    while sum(bool(rows_of(runs, seed)) for seed in range(3)) < 2:
        assert time.monotonic() < end
        time.sleep(0.02)
    job[1].terminate()
    ended = [finish(process) for process in job]
    assert [code for code, _, _ in ended] == [143, 143], ended
    assert "The same command goes on from there." in ended[0][2]
    assert (tmp_path / "table.json").exists()
