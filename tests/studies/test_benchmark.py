"""The benchmark: its arms train alike, its floors are what one counts by hand, and what fails has a name."""

import copy
import json
import math
import os
import re
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, config_of, run_command

from cifar_jax.errors import InputError
from cifar_jax.marked import fill
from cifar_jax.nn.models import NETWORKS
from cifar_jax.studies.benchmark import agreement, curves, floors, runner, settings, speed_table, suite, summary, worker
from cifar_jax.studies.benchmark.compare import Setting
from cifar_jax.studies.benchmark.recipe import Recipe

STAGES = "((4, 4), (4, 4), (8, 8))"


def epochs(*, losses=(4.6, 4.5, 4.4), test_loss=4.5, train_images=60, test_images=20, whole=True, number=3):
    row = {
        "train_seconds": 2.0, "train_images": train_images, "losses": list(losses), "test_seconds": 0.5,
        "test_images": test_images, "test_loss": test_loss, "test_accuracy": 1.0, "whole": whole,
    }  # fmt: skip
    return [copy.deepcopy(row) for _ in range(number)]


def process(**options):
    return {
        "first_step": 5.0, "first_epoch": 8.0, "build": 1.0, "epochs": epochs(**options), "peak_host_memory": 2**30,
        "peak_device_memory": None, "origin": {"device": "cpu"},
    }  # fmt: skip


@pytest.fixture(scope="module")
def measured(torch, tmp_path_factory):
    """A comparison of a narrow network as the command makes it, in processes."""
    path = tmp_path_factory.mktemp("benchmark") / "figures.json"
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # threads that wait for each other crawl beside other tests
    patch = pytest.MonkeyPatch()
    patch.setattr(worker, "CEILINGS", ("ceilings-torch",))  # a second opinion that takes seconds
    try:
        code = run_command(
            "benchmark", f"--config.model.stages={STAGES}", "--batch=20", "--images=60", "--epochs=2", "--repeats=1",
            "--nostart", "--arms=P0,J1", f"--json={path}",
        )  # fmt: skip
    finally:
        patch.undo()
        os.sched_setaffinity(0, cores)
    return code, json.loads(path.read_text())


@pytest.mark.slow
def test_a_record_has_what_the_tables_show(measured):
    code, record = measured
    (setting,) = record["settings"]
    assert code == 0
    assert setting["not_run"] == {}
    assert setting["agreement"]["disagree"] == []
    assert set(setting["ratios"]["J1"]) == set(setting["arms"]) == {"P0", "J1"}
    assert set(setting["ceilings"]) == {"device", "torch"}
    assert "torch" in record["origin"]["versions"]
    assert record["origin"]["command"].startswith("python ")
    assert summary.table(setting).count("\n") >= 5
    for arm in setting["arms"].values():
        assert arm["train"]["low"] <= arm["train"]["median"] <= arm["train"]["high"]
        assert 0 < arm["first_step"]["cold"] < arm["run"]["cold"]
        assert all(ratio > 0 for ratio in arm["train_over_floors"].values())
    assert all(row["test_images"] == 20 for each in setting["processes"] for row in each["epochs"])


@pytest.mark.parametrize(("optimizer", "size"), [("adam", 32), ("sgd", 40)])
def test_the_arms_train_alike(torch, tmp_path, monkeypatch, optimizer, size):
    """All of them in this process, but for the one that is compiled: what differs is their own programs' numbers."""
    monkeypatch.setitem(NETWORKS, "tiny", ((4, 4), (4,)))
    config = config_of(["--config=cnn6_adam", f"--config.optimizer.name={optimizer}"])
    config.data.batch_size, config.data.image_size, config.optimizer.weight_decay = 20, size, 0.0005
    settings.check(config)
    config.model.name = "tiny"
    made = Setting(
        config, settings.store_images(tmp_path, 200, 20, None), folder=tmp_path, device="cpu", epochs=2,
        precision="highest",
    )  # fmt: skip
    made.recipe = made.recipe._replace(threads=1)
    arms = [name for name in worker.ARMS if name != "P2"]
    made.runs = {arm: [worker.measure(worker.ARMS[arm], made.recipe, time.time())] for arm in arms}
    found = made.record()["agreement"]
    assert found["disagree"] == []
    assert max(each["first"] for each in found["largest"].values()) < (1e-6 if size == 32 else 2e-5)
    # Rounding grows to 2e-4 and less in 20 steps.
    assert max(each["epoch"] for each in found["largest"].values()) < 1e-3
    assert max(each["test"] for each in found["largest"].values()) < 2e-3


# Floors


def test_arithmetic_of_cnn6_by_hand():
    """Guide: 153 million multiply-adds forward, 0.92 GFLOP to train; the first layer needs no gradient of its input."""
    by_hand = 1024 * (27 * 64 + 576 * 64) + 256 * (576 * 128 + 1152 * 128) + 64 * (1152 * 256 + 2304 * 256) + 25_600
    assert floors.multiply_adds(NETWORKS["cnn6"], 32, 100) == by_hand == 152_790_016
    work = floors.training(NETWORKS["cnn6"], image_size=32, classes=100, batch_size=200, value_bytes=4, moments=2)
    assert work.flops == 6 * by_hand - 2 * 1024 * 27 * 64
    assert round((work.flops + 2 * 1024 * 27 * 64) / 1e9, 2) == 0.92


def test_bytes_of_a_small_network_by_hand():
    """One convolution to 2 channels at 4x4, pooled to 2x2: 32 values out, 8 kept; 54 + 4 + 9 parameters, 3 classes."""
    stages = ((2,),)
    assert floors.parameters(stages, 3) == 54 + 4 + 9
    work = floors.training(stages, image_size=4, classes=3, batch_size=10, value_bytes=2, moments=1)
    assert work.bytes == (4 * 32 + 2 * 8) * 2 + 6144 + 67 * 4 * 8 / 10
    work = floors.evaluation(stages, image_size=4, classes=3, batch_size=10, value_bytes=2)
    assert work == floors.Work(2 * (27 * 2 * 16 + 6), 2 * 8 * 2 + 3072 + 67 * 4 / 10)


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_are_the_networks(name):
    known = {"cnn6": 1_172_004, "cnn10": 7_689_252}  # test_models holds them against the network itself
    assert floors.parameters(NETWORKS[name], 100) == known[name]


def test_the_larger_floor_is_the_smaller_multiple():
    over = summary.over_floors(
        floors.Work(flops=2e9, bytes=1e6), 10.0, {"flops_per_second": 1e12, "bytes_per_second": 1e9}
    )
    assert over == {"arithmetic": 50.0, "bytes": 100.0}  # 0.1 s an image against 2 ms and 1 ms


# Agreement


def disagreements(**runs):
    return agreement.compare(runs, agreement.BOUNDS["float32"])["disagree"]


def test_equal_runs_agree():
    assert disagreements(P1=[epochs()], J1=[epochs(), epochs()]) == []


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"losses": (4.601, 4.5, 4.4)}, "J1 disagrees: the loss of step 1 is 2.2e-04 off P1's"),
        ({"losses": (4.6, 4.5, 4.45)}, "J1 disagrees: the loss of step 3 is 1.1e-02 off P1's"),
        ({"losses": (4.6, 4.5), "train_images": 40, "whole": False, "test_loss": 9.9}, None),
        ({"losses": (4.6, math.nan, 4.4)}, "J1 disagrees: the loss of step 2"),
        ({"test_loss": 8.0}, "J1 disagrees: the test loss of epoch 3 is 7.8e-01 off"),
        ({"train_images": 40}, "J1 disagrees: epoch 1 counted 40 images in train, not 60"),
        ({"test_images": 10}, "J1 disagrees: epoch 1 counted 10 images in test, not 20"),
    ],
)
def test_an_arm_that_trains_otherwise_is_named(other, said):
    found = disagreements(P1=[epochs()], P0=[epochs()], J1=[epochs(**other)])
    if said is None:  # an epoch cut short is compared as far as both went
        assert found == []
    else:
        assert len(found) == 1
        assert found[0].startswith(said)


def test_a_late_mean_counts_and_so_does_a_second_process():
    slow = epochs()
    slow[1]["losses"] = [4.9] * 3
    assert disagreements(P1=[epochs()], J1=[epochs(), slow])[0].startswith("J1 disagrees: the mean loss of epoch 2")


def test_products_round_as_they_are_told():
    assert agreement.rounding("float32", "gpu", "tensorfloat32") == "tensorfloat32"
    assert agreement.rounding("float32", "gpu", "highest") == agreement.rounding("float32", "cpu", "tensorfloat32")
    assert agreement.rounding("bfloat16", "gpu", "tensorfloat32") == "bfloat16"


# Processes


def recipe(**changes):
    return Recipe({}, [[4]], 3, 2, None, "cpu", 1, "highest", "", "")._replace(**changes)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise RuntimeError('no such device')", "it ended with code 1: RuntimeError: no such device"),
        ("import torch_that_is_missing", "it ended with code 1: ModuleNotFoundError: No module named"),
        ("raise ModuleNotFoundError(\"No module named 'torch'\")", "PyTorch is not installed: pip install '.[torch]'."),
        ("pass", "it ended with code 0: it said nothing"),
        ("import os; os._exit(7)", "it ended with code 7: it said nothing"),
        ("import time; time.sleep(60)", "it was not done within 1 s, and was ended."),
    ],
)
def test_a_process_that_fails_says_why(code, reason, tmp_path):
    begin = time.perf_counter()
    outcome = runner.run_process(
        "J1", recipe(), caches=tmp_path, timeout=1.0, command=lambda *files: [sys.executable, "-c", code]
    )
    assert outcome.result is None
    assert outcome.reason.startswith(reason)
    assert time.perf_counter() - begin < 10


def test_a_process_is_ended_with_what_it_started(tmp_path):
    alive = tmp_path / "alive"
    child = f"import time, pathlib\nwhile True: pathlib.Path({str(alive)!r}).touch(); time.sleep(0.05)"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    runner.run_process(
        "J1", recipe(), caches=tmp_path, timeout=1.5, command=lambda *files: [sys.executable, "-c", code]
    )
    if alive.exists():
        alive.unlink()
        time.sleep(0.3)
    assert not alive.exists()


def test_an_arm_that_fails_is_named_and_the_others_stand():
    record = record_of({"J1": [process(), process()]}, {"P2": "it ended with code 1: RuntimeError: no compiler"})
    assert "P2 was not run: it ended with code 1: RuntimeError: no compiler" in summary.table(record)
    again = record_of({"J1": [process()]}, {"J1": "the budget of 9 s was spent."})
    assert "J1 was not run again: the budget of 9 s was spent." in summary.table(again)
    assert "P2 was not run: it ended" in speed_table._tables(as_file(record), "results/x.json")
    assert record["arms"]["J1"]["train"]["median"] == 30
    assert record["ratios"] == {"J1": {"J1": 1.0}}


def record_of(runs, not_run=()):
    config = config_of(["--config=cnn6_adam"])
    its = recipe(config=json.loads(json.dumps(config.to_dict())), stages=settings.stages(config), classes=100)
    images = settings.Images(ROOT, 60, 20, 100, "noise")
    ceilings = {"jax": {"flops_per_second": 1e11, "bytes_per_second": 1e10}}
    return summary.to_record(its, images, runs=runs, not_run=dict(not_run), ceilings=ceilings)


def as_file(record):
    hardware = {"devices": ["cpu"], "cores": 2, "processor": "a processor"}
    return {
        "origin": {"hardware": hardware, "versions": {"jax": "1", "flax": "2", "torch": "3"}}, "start": None,
        "settings": [record],
    }  # fmt: skip


def test_figures_of_an_arm_by_hand():
    first, second = process(number=2), process(number=2)
    second["epochs"][1]["train_seconds"] = 4.0
    second["first_step"], second["first_epoch"] = 2.0, 3.0
    arm = summary.summarize([first, second])
    assert arm["train"] == {"median": 22.5, "low": 15.0, "high": 30.0, "epochs": 2}
    assert arm["test"]["median"] == 40
    assert arm["train_with_compilation"] == 60 / (1 + 2)
    assert arm["first_step"] == {"cold": 5.0, "warm": 2.0}
    epoch = 60 / 22.5 + 20 / 40
    assert arm["run"] == {"cold": pytest.approx(8 + 29 * epoch), "warm": pytest.approx(3 + 29 * epoch)}


def test_a_run_of_one_epoch_has_no_steady_figures():
    arm = summary.summarize([process(number=1)])
    assert arm["train"] is arm["test"] is None
    assert arm["run"] == {"cold": None, "warm": None}


# Commands


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["compar"], "python -m cifar_jax benchmark does not take compar; "),
        (["--arms=P1,P9"], "--arms must be different ones of P0, P1, P1L, P2, J0, J1, got P1,P9."),
        (["--arms=P1,P1"], "--arms must be different ones of"),
        (["--model=cnn7"], "model.name must be one of cnn6, cnn10, got 'cnn7'."),
        (["--size=4"], "data.image_size must be an integer from 8 to 512, got 4."),
        (["--size=large"], "data.image_size must be an integer from 8 to 512, got 'large'."),
        (["--dtype=float64"], "dtype must be float32 or bfloat16 for the benchmark, got 'float64'."),
        (["--config.schedule.name=step"], "schedule.name must be 'constant' for the benchmark, got 'step'."),
        (["--config.norm.rule=flax"], "norm.rule must be 'torch' for the benchmark, got 'flax'."),
        (["--config.data.nam=x"], "data.nam is not a config key"),
        (["--epochs=1"], "--epochs must be an integer of at least 2, got '1'."),
        (["everything"], "python -m cifar_jax benchmark does not take everything; "),
        (["--arms=J1", "everything"], "python -m cifar_jax benchmark does not take everything; "),
        (["suite", "--settings=cnn6-32"], "--settings must be some of cnn6-32-bfloat16, "),
        (["suite", "--model=cnn6"], "--model is part of --settings in a suite, got 'cnn6'."),
        (["curves", "--batches=50,x"], "--batches must be numbers above 0 between commas, got '50,x'."),
        (["curves", "--sizes=32,4"], "data.image_size must be an integer from 8 to 512, got 4."),
    ],
)
def test_wrong_input_is_one_sentence(argv, said, capsys):
    assert run_command("benchmark", *argv) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"Error: {said}")
    assert error.count("\n") == 1


def test_too_few_or_too_many_images_are_refused(tmp_path):
    with pytest.raises(InputError, match="--images must be at least one batch, 100, got 50"):
        settings.store_images(tmp_path, 50, 100, None)
    with pytest.raises(InputError, match="holds nothing|which is empty"):
        settings.store_images(tmp_path, 100, 100, str(tmp_path))


def test_images_come_in_whole_batches(tmp_path):
    stored = settings.store_images(tmp_path, 130, 50, None)
    assert (stored.train, stored.test, stored.classes) == (100, 50, 100)
    assert np.load(tmp_path / "train_images.npy").shape == (100, 32, 32, 3)


def test_a_suite_goes_from_what_tells_most():
    jobs = suite.plan(["x", "y"], ["P0", "P2", "J0", "J1"])
    assert [f"{job.setting}{job.arm}" for job in jobs] == (
        ["xP2", "xJ1", "yP2", "yJ1", "xJ1", "xP2", "yJ1", "yP2", "xP0", "xJ0", "yP0", "yJ0"]
    )


# Curves


def test_growth_is_found():
    even = {"live_bytes": [9, 5, 5, 5], "compilations": [3, 0, 0, 0], "seconds": [9.0, 1.0, 1.1, 1.0]}
    assert [check["ok"] for check in curves.judge_epochs(**even)] == [True] * 3
    leak = curves.judge_epochs(**{**even, "live_bytes": [9, 5, 5, 6]})
    again = curves.judge_epochs(**{**even, "compilations": [3, 0, 1, 0]})
    slower = curves.judge_epochs(**{**even, "seconds": [1.0, 1.0, 1.5, 1.6]})
    assert [[check["ok"] for check in checks] for checks in (leak, again, slower)] == (
        [[False, True, True], [True, False, True], [True, True, False]]
    )
    rates = [{"x": 1000, "images_per_second": 100.0}, {"x": 9000, "images_per_second": 50.0}]
    assert not curves.data_check(rates)[0]["ok"]
    assert curves.data_check(rates[:1]) == []


def test_curves_of_a_narrow_network(tmp_path):
    """The whole command. What it finds of time may be wrong on a busy machine; the rest must hold.

    The one point has as many images as the check of epochs, so that the two share a program.
    """
    files = {kind: tmp_path / f"curves.{kind}" for kind in ("png", "json")}
    run_command(
        "benchmark", "curves", f"--config.model.stages={STAGES}", "--batch=10", "--batches=", "--widths=", "--sizes=",
        "--data_sizes=30", "--seconds=0", *(f"--{kind}={path}" for kind, path in files.items()),
    )  # fmt: skip
    record = json.loads(files["json"].read_text())
    assert list(record["curves"]) == ["data set size"]
    assert all(point["images_per_second"] > 0 for curve in record["curves"].values() for point in curve)
    assert [check["ok"] for check in record["checks"][:2]] == [True, True]
    assert files["png"].read_bytes().startswith(b"\x89PNG")


# The tables of docs/benchmark.md

RECORDS = [path for name in speed_table.FILES if (path := ROOT / "results" / name).exists()]


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.name)
def test_a_record_is_not_stale(path):
    """Floors, sums and agreement are worked out anew from what the processes measured."""
    for setting in json.loads(path.read_text())["settings"]:
        config = {"dtype": setting["dtype"], "data": {"batch_size": setting["batch_size"]}}
        config["data"]["image_size"] = setting["image_size"]
        config["optimizer"] = {"name": setting["optimizer"], "momentum": 0.9}
        work = summary.works(recipe(config=config, stages=setting["stages"], classes=setting["classes"]))
        assert setting["work_per_image"] == {phase: each._asdict() for phase, each in work.items()}
        for name, arm in setting["arms"].items():
            assert arm["train"]["low"] <= arm["train"]["median"] <= arm["train"]["high"], name
            rate = arm["train"]["median"] / setting["arms"]["J1"]["train"]["median"]
            assert setting["ratios"][name]["J1"] == pytest.approx(rate)
        assert setting["agreement"]["disagree"] == []


def test_a_table_says_what_the_record_says():
    record = as_file(record_of({"J1": [process()], "P1": [process()]}))
    text = speed_table._tables(record, "results/x.json")
    assert "On 2 CPU cores (a processor) with jax 1, flax 2, torch 3 ([all figures](results/x.json)):" in text
    assert re.search(r"\| CNN6, 32x32, batch 200, float32 \| P1: .* \| 30 \(30 to 30\) \| 20 \| .* \| 1\.00 \|", text)
    assert fill("a\n<!-- speed: x -->\nold\n<!-- end of speed -->\n", "speed", text).count("\n| CNN6") == 2
    with pytest.raises(ValueError, match="once each"):
        fill("no markers", "speed", text)
