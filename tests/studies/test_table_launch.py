"""Processes side by side: what they come to, however they end. Their work is a small script's here, not training."""

import signal
import time

import pytest
from conftest import ROOT
from table_workers import began

from cifar_jax.devices.interrupt import Interrupted
from cifar_jax.errors import InputError
from cifar_jax.studies.table import launch
from cifar_jax.studies.table.plan import find_configs, plan
from cifar_jax.studies.table.record import forget_failures, read_failures, read_table, unfinished
from cifar_jax.studies.table.watch import Watch

EPOCHS = 2


@pytest.fixture
def groups(monkeypatch):
    monkeypatch.chdir(ROOT)
    paths = find_configs("configs/cnn6_adam.py,configs/cnn6_step.py")
    return plan(paths, [("data.name", "shapes"), ("train.epochs", str(EPOCHS))], seeds=3, holdout=0)


def train(groups, workdir, *, parallel=1, look=lambda: None, check_stop=lambda: None, **options):
    work = [(group, seeds) for group in groups if (seeds := unfinished(group, workdir))]
    for group in groups:
        forget_failures(workdir / group.folder)
    launch.train_groups(work, workdir, parallel=parallel, look=look, check_stop=check_stop, **options)


def statuses(groups, workdir):
    runs = read_table(groups, workdir, settings={}, command="", commit=None, date="")["runs"]
    return {(run["config"], run["seed"]): run["status"] for run in runs}


def test_every_run_is_trained_once(groups, acts, tmp_path, capsys):
    calls = []
    watch = Watch(groups, tmp_path, on_done=lambda: calls.append(watch.done()))
    train(groups, tmp_path, look=watch.look)
    assert set(statuses(groups, tmp_path).values()) == {"done"}
    assert [seeds for seeds, _ in began(tmp_path / "cnn6_adam")] == [[0, 1, 2]]
    assert calls[-1] == "6 of 6 runs are done"
    out = capsys.readouterr().out
    assert out.count("  epoch 2/2  ") == 6
    assert "cnn6_step/seed1  maximum test accuracy 21.00 % (epoch 2), final 21.00 %; " in out
    train(groups, tmp_path)
    assert len(began(tmp_path / "cnn6_adam")) == 1, "what is done is skipped"


def test_only_what_is_not_done_is_trained_again(groups, acts, tmp_path):
    train(groups[:1], tmp_path)
    (tmp_path / "cnn6_adam/seed1/checkpoints/2").rmdir()  # killed before its last checkpoint was whole
    assert unfinished(groups[0], tmp_path) == [1]
    train(groups, tmp_path)
    assert [seeds for seeds, _ in began(tmp_path / "cnn6_adam")] == [[0, 1, 2], [1]]


@pytest.mark.parametrize(
    ("act", "why"),
    [
        ("diverge", "The loss became nan."),
        ("crash", "RuntimeError: Out of luck (exit code 1; see cnn6_adam/log.txt)"),
        ("kill", "Ended by SIGKILL (exit code -9; see cnn6_adam/log.txt)"),
    ],
)
def test_a_failed_run_does_not_stop_the_others(groups, acts, tmp_path, act, why):
    acts["cnn6_adam"] = {"1": act}
    train(groups, tmp_path)
    expected = dict.fromkeys([(group.name, seed) for group in groups for seed in range(3)], "done")
    assert statuses(groups, tmp_path) == {**expected, ("cnn6_adam", 1): "failed"}
    assert read_failures(tmp_path / "cnn6_adam") == {1: why}
    acts.clear()
    train(groups, tmp_path)
    assert set(statuses(groups, tmp_path).values()) == {"done"}
    assert read_failures(tmp_path / "cnn6_adam") == {}


def test_a_refusal_before_anything_is_trained_ends_it(groups, acts, tmp_path):
    acts["cnn6_adam"] = {"0": "refuse"}
    with pytest.raises(InputError, match=r"^platform must be there\.$"):
        train(groups, tmp_path)
    assert not (tmp_path / "cnn6_step").exists() or not (tmp_path / "cnn6_step" / "began").exists()


def test_a_later_refusal_is_a_failed_run(groups, acts, tmp_path):
    acts["cnn6_step"] = {"2": "refuse"}
    train(groups, tmp_path)
    assert read_failures(tmp_path / "cnn6_step") == {2: "platform must be there. (exit code 2; see cnn6_step/log.txt)"}


@pytest.mark.parametrize("act", ["crash", "refuse"])
def test_a_process_among_others_leaves_the_rest_to_them(groups, acts, tmp_path, act, capsys):
    """A broken machine must not fail all that is left; nor must its refusal stop a job that others go on with."""
    acts["cnn6_adam"] = dict.fromkeys("012", act)
    runs = iter([(groups[0], [seed]) for seed in range(3)])
    launch.train_groups(
        runs, tmp_path, parallel=1, look=lambda: None, check_stop=lambda: None, log="log1.txt", most_crashes=2
    )
    assert sorted(read_failures(tmp_path / "cnn6_adam")) == [0, 1]
    assert next(runs)[1] == [2], "not asked for"
    assert capsys.readouterr().err.endswith(" This process takes no more runs.\n")
    assert "log1.txt" in read_failures(tmp_path / "cnn6_adam")[0]


def test_a_crash_now_and_then_is_no_broken_machine(groups, acts, tmp_path):
    acts["cnn6_adam"] = {"0": "crash", "2": "crash"}
    runs = [(groups[0], [seed]) for seed in range(3)] + [(groups[1], [0])]
    launch.train_groups(runs, tmp_path, parallel=1, look=lambda: None, check_stop=lambda: None, most_crashes=2)
    assert statuses(groups, tmp_path)["cnn6_step", 0] == "done"


def test_a_task_without_a_gpu_is_refused(groups, acts, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(InputError, match="got '0,1' in task 2"):
        train(groups, tmp_path, device=2)


def test_one_after_the_other(groups, acts, tmp_path):
    train(groups, tmp_path)
    ((_, second_began),) = began(tmp_path / "cnn6_step")
    assert second_began > float((tmp_path / "cnn6_adam" / "ended").read_text())


def test_side_by_side(groups, acts, tmp_path):
    """Each waits for the other; alone it would wait for ever."""
    acts["cnn6_adam"] = acts["cnn6_step"] = {"0": "meet"}
    end = time.monotonic() + 20

    def check_stop():
        assert time.monotonic() < end

    train(groups, tmp_path, parallel=2, check_stop=check_stop)
    assert set(statuses(groups, tmp_path).values()) == {"done"}


@pytest.mark.parametrize(
    ("visible", "device", "expected"),
    [(None, 1, "1"), ("4,5,6,7", 1, "5"), ("4,5", None, "4,5"), (None, None, None), ("7", 0, "7")],
)
def test_which_gpu_a_process_may_use(monkeypatch, visible, device, expected):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert launch._environment(1, device).get("CUDA_VISIBLE_DEVICES") == expected


def test_a_stop_reaches_the_processes_and_is_no_failure(groups, acts, tmp_path):
    acts["cnn6_adam"] = {"1": "hang"}

    def check_stop():
        if (tmp_path / "cnn6_adam/seed1/metrics.jsonl").exists():
            raise Interrupted(signal.SIGINT)

    begin = time.monotonic()
    with pytest.raises(Interrupted):
        train(groups, tmp_path, check_stop=check_stop)
    assert time.monotonic() - begin < 10
    assert (tmp_path / "cnn6_adam" / "stopped").exists()
    assert statuses(groups, tmp_path)["cnn6_adam", 0] == "done"
    assert statuses(groups, tmp_path)["cnn6_adam", 1] == "unfinished"
    assert not (tmp_path / "cnn6_step" / "began").exists()
