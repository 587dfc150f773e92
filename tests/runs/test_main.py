"""`python main.py` as a user starts it: real processes, signals, exit codes and what is left behind."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
from conftest import REAL_DATA, ROOT

SMALL = (
    "--config=configs/quickstart.py",
    "--config.model.stages=((4,4),(4,4),(4,4))",
    "--config.data.limit_train=400",
    "--config.data.limit_test=100",
)


def start(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "main.py", *map(str, arguments)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def finish(process, timeout=120):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def rows(workdir):
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_epochs(process, workdir, count, timeout=120):
    end = time.monotonic() + timeout
    while len(rows(workdir)) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


def timeless(history):
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in history]


@pytest.mark.slow
def test_a_stopped_run_goes_on_where_it_was(tmp_path):
    """Stopped in mid-epoch, each way in turn, and at its end the same numbers as a run that nobody stopped."""
    for signum, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        done = len(rows(tmp_path / "run"))
        endless = start(*SMALL, f"--workdir={tmp_path / 'run'}", "--config.train.epochs=10000")
        wait_for_epochs(endless, tmp_path / "run", done + 2)
        sent = time.monotonic()
        endless.send_signal(signum)
        returned, out, err = finish(endless)
        assert time.monotonic() - sent < 10
        assert returned == code
        assert ("Resuming the run" in out) == (signum != signal.SIGINT)
        if signum != signal.SIGKILL:
            assert err.count("\n") == 1
            assert "The same command goes on from there." in err
    done = len(rows(tmp_path / "run"))
    # The cosine ends with the epochs unless it is told otherwise, and this run has fewer.
    command = (*SMALL, f"--config.train.epochs={done + 1}", "--config.schedule.t_max=10000")
    returned, out, err = finish(start(*command, f"--workdir={tmp_path / 'run'}"))
    assert (returned, err) == (0, "")
    assert "Resuming the run" in out
    returned, out, _ = finish(start(*command, f"--workdir={tmp_path / 'whole'}"))
    assert returned == 0
    assert timeless(rows(tmp_path / "run")) == timeless(rows(tmp_path / "whole"))


def test_evaluate_reads_the_run_it_is_given_and_another_config_leaves_it_alone(tmp_path):
    command = (*SMALL, "--config.train.epochs=2", f"--workdir={tmp_path / 'run'}")
    assert finish(start(*command))[0] == 0
    history = rows(tmp_path / "run")
    code, out, err = finish(start(*command, "--mode=evaluate"))
    assert (code, err) == (0, "")
    (begun,) = [json.loads(line) for line in (tmp_path / "run" / "starts.jsonl").read_text().splitlines()]
    assert begun["command"] == shlex.join(["python", "main.py", *command])
    assert begun["hardware"]["devices"] == ["cpu"]
    assert f"newest epoch 2: test loss {history[1]['test_loss']:.4f}, test accuracy" in out
    assert "(100 images)" in out
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    code, _, err = finish(start(*command, "--config.data.name=cifar100", f"--config.data.dir={REAL_DATA}"))
    assert code == 2
    assert "whose run has data.name='shapes' where this one has 'cifar100'" in err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Things that are not what a run needs."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "file").write_text("mine")
    (folder / "empty").mkdir()
    (folder / "mine").mkdir()
    (folder / "mine" / "notes.txt").write_text("mine")
    (folder / "short.py").write_text("import ml_collections\nget_config = ml_collections.ConfigDict\n")
    return folder


REFUSED = [
    (("--config={inputs}/short.py",), "seed must be an integer from 0 to 2147483647, got nothing: the config lacks"),
    (("--config.data.batch_size=0",), "data.batch_size must be an integer of at least 1, got 0."),
    (("--config.train.epochs=-1",), "train.epochs must be an integer of at least 1, got -1."),
    (("--config.optimizer.name=lion",), "optimizer.name must be one of sgd, adam, got 'lion'."),
    (("--config.data.image_size=33.5",), "data.image_size must be an integer from 8 to 512, got 33.5."),
    (("--config.schedule.name=cosine",), "schedule.t_max must be an integer of at least 1 with schedule.name=cosine"),
    (("--config.optimizer.lr=nan",), "optimizer.lr must be a finite number above 0, got 'nan'."),
    (("--workdir={inputs}/file",), "--workdir must be a folder, got"),
    (("--workdir={inputs}/mine",), "--workdir must be a new or empty folder or the folder of a run, got"),
    (("--workdir=/proc/run",), "--workdir must be a folder that can be written to, got '/proc/run'"),
    (("--config.data.dir={inputs}/empty",), "data.dir must be a folder with cifar100/<version>"),
    (("--config.platform=gpu",), "platform must name devices that JAX finds here (cpu) or be auto, got gpu"),
    (("--mode=evaluate", "--workdir={inputs}/none"), "--workdir must be the folder of a run with --mode=evaluate"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_wrong_input_is_refused_in_one_sentence(inputs, arguments, message):
    before = sorted((str(path), path.stat().st_mtime_ns) for path in inputs.rglob("*"))
    arguments = [argument.format(inputs=inputs) for argument in arguments]
    if not any(argument.startswith("--workdir") for argument in arguments):
        arguments.append(f"--workdir={inputs}/run")
    environment = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    code, _, err = finish(start(*arguments, env=environment))
    assert code == 2, err
    assert err.startswith("Error: ")
    assert message in err
    assert err.count("\n") == 1
    assert sorted((str(path), path.stat().st_mtime_ns) for path in inputs.rglob("*")) == before


def test_a_refusal_takes_seconds(tmp_path):
    """5 s on two quiet cores; as many seconds of processor time where they are busy. It compiles nothing."""
    process = start("--config.data.batch_size=0", f"--workdir={tmp_path / 'run'}")
    process.communicate(timeout=60)
    before = os.times()
    process = start("--config.data.batch_size=0", f"--workdir={tmp_path / 'run'}")
    process.communicate(timeout=60)
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < 5
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason=f"the real CIFAR-100 is not at {REAL_DATA}")
def test_without_a_flag_the_default_config_runs(tmp_path):
    """Overrides of it too, which ml_collections alone would apply before reading another --config."""
    code, out, _ = finish(start("--config.data.name=shapes", "--config.data.batch_size=0", "--config.seed=1"))
    assert (code, out) == (2, "")
