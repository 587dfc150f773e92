"""Predictions, against the evaluation of the same run and against Flax called by hand."""

import json
import os
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from cifar_jax.data import class_names
from cifar_jax.data.shapes import make_shapes
from cifar_jax.devices.select import compiler_options
from cifar_jax.errors import InputError
from cifar_jax.runs import build as experiment
from cifar_jax.runs import phases, train
from cifar_jax.runs.checkpoint import Checkpoints
from cifar_jax.runs.config import flatten
from cifar_jax.use import predict, trained
from cifar_jax.use.predict import predict_pictures
from cifar_jax.use.trained import compile_probabilities, load_trained


@pytest.fixture
def run(trained_run, tmp_path):
    """A copy of the run's folder."""
    return shutil.copytree(trained_run[0], tmp_path / "run")


@pytest.fixture
def test_images(trained_run, tmp_path):
    """The run's test images as pictures in a folder, sorted as they stand in the data set."""
    folder = tmp_path / "test_images"
    folder.mkdir()
    for number, image in enumerate(trained_run[2].test.images):
        Image.fromarray(image).save(folder / f"{number:02}.png")
    return folder


def predicted(run, *paths):
    return list(predict.predict_files(load_trained(run), paths))


def snapshot(folder):
    return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*"))


def test_predictions_are_those_of_evaluation(trained_run, run, test_images):
    """Batch by batch, the last and ragged one too: 25 pictures in batches of 10, as the run evaluates."""
    _, config, dataset = trained_run
    found = np.stack([prediction.probabilities for prediction in predicted(run, test_images)])
    assert found.shape == (25, 100)
    ours = load_trained(run)
    x = experiment.build(config, dataset)
    evaluate = phases.compile_evaluation(x, x.test, whole=False)
    per_label = found[np.arange(25), dataset.test.labels]
    metrics = list(phases.fetch(evaluate(ours.variables["params"], ours.variables["batch_stats"]), lambda: None))
    for first, batch in zip((0, 10, 20), metrics, strict=True):
        # Logarithm and sum are worked out in another way: a few units in the last place of float32.
        assert batch.loss_sum == pytest.approx(-np.log(per_label[first : first + 10]).sum(), rel=1e-6)
    hits = found.argmax(1) == dataset.test.labels
    assert 100 * hits.mean() == pytest.approx(ours.test_accuracy)


def test_predictions_are_the_networks_bit_for_bit(trained_run, run, test_images):
    """What Flax and torchvision's arithmetic give, called by hand on whole batches."""
    from cifar_jax.nn.transforms import to_float

    ours = load_trained(run)

    def network(variables, images):
        return jax.nn.softmax(ours.model.apply(variables, to_float(images, normalize=True), train=False))

    images = trained_run[2].test.images
    program = jax.jit(network).lower(ours.variables, images[:10]).compile(compiler_options(ours.model.dtype))
    expected = np.concatenate([program(ours.variables, part) for part in (images[:10], images[10:20])])
    found = predicted(run, test_images)
    np.testing.assert_array_equal(np.stack([p.probabilities for p in found[:20]]), expected)
    # Beside others, in another order: the same bits. In a batch of one the sums may round otherwise.
    again = predicted(run, *reversed(sorted(test_images.iterdir())))
    np.testing.assert_array_equal(
        np.stack([p.probabilities for p in again[::-1]]), np.stack([p.probabilities for p in found])
    )
    (alone,) = predicted(run, test_images / "07.png")
    np.testing.assert_allclose(alone.probabilities, expected[7], rtol=1e-5)


def test_batches_are_bounded_and_compiled_once(run, test_images, monkeypatch):
    compiled, lengths = [], []

    def watched(ours, batch_size):
        compiled.append(batch_size)
        program = compile_probabilities(ours, batch_size)

        def run_program(images):
            lengths.append(len(images))
            return program(images)

        return run_program

    monkeypatch.setattr(predict, "compile_probabilities", watched)
    assert len(predicted(run, test_images)) == 25
    assert (compiled, lengths) == ([10], [10, 10, 5])
    compiled.clear()
    assert len(predicted(run, *[test_images / f"0{i}.png" for i in range(3)])) == 3
    assert compiled == [4]


def test_it_needs_no_data_and_changes_nothing(run, test_images, monkeypatch):
    """Not even what a run that is under way has not finished."""
    monkeypatch.setattr(experiment, "load_dataset", lambda *_: pytest.fail("the data were asked for"))
    unfinished = run / "checkpoints" / "4.orbax-checkpoint-tmp"
    unfinished.mkdir()
    before = snapshot(run)
    assert predict_pictures(run, [test_images / "00.png"])
    assert snapshot(run) == before


def test_the_best_epoch_answers(trained_run, run, tmp_path):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = max(rows, key=lambda row: (row["test_accuracy"], -row["epoch"]))
    ours = load_trained(run)
    assert (ours.epoch, ours.test_accuracy) == (best["epoch"], best["test_accuracy"])
    # A run that came from elsewhere has measured none.
    _, config, dataset = trained_run
    state = experiment.build(config, dataset).state
    shutil.rmtree(run / "checkpoints")
    checkpoints = Checkpoints(run / "checkpoints")
    checkpoints.save(0, state, [])
    checkpoints.close()
    ours = load_trained(run)
    assert (ours.epoch, ours.test_accuracy) == (0, None)
    jax.tree.map(np.testing.assert_array_equal, ours.variables["params"], jax.device_get(state.params))


def test_a_config_of_another_version(run):
    """Later keys may be missing, and the device may be another; a key that is not known may mean anything."""
    config = json.loads((run / "config.json").read_text())
    del config["train"], config["data"]["sampler"]
    config["platform"] = "tpu"
    (run / "config.json").write_text(json.dumps(config))
    assert load_trained(run).epoch
    config["data"]["later"] = 1
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="config.json must be as the run wrote it: data.later is not a config key"):
        load_trained(run)


def test_class_names_are_the_datas():
    assert class_names("shapes") == make_shapes(train_per_class=1, test_per_class=1).class_names
    assert len(class_names("cifar10")) == 10


def edit(key, value):
    def change(run):
        config = json.loads((run / "config.json").read_text())
        group, _, name = key.rpartition(".")
        (config[group] if group else config)[name] = value
        (run / "config.json").write_text(json.dumps(config))

    return change


def remove(name):
    def change(run):
        for path in run.glob(name):
            shutil.rmtree(path)

    return change


def into_seeds(run):
    for seed in (0, 1):
        shutil.copytree(run, run / f"seed{seed}")
    (run / "config.json").unlink()


WRONG_RUNS = [
    (shutil.rmtree, r"--workdir must be the folder of a run, got '.*run', which does not exist\."),
    (
        lambda run: (run / "config.json").unlink(),
        r"--workdir must be the folder of a run, .* no readable config.json\.",
    ),
    (lambda run: (run / "config.json").write_text('{"se'), r"--workdir .*, which has no readable config.json\."),
    (into_seeds, r"--workdir .*, which has no readable config.json; runs are in its seed0, seed1\."),
    (remove("checkpoints"), r"--workdir must hold a checkpoint, got '.*run', which has none\."),
    (remove("checkpoints/*"), r"--workdir must hold a checkpoint, got '.*run', which has none\."),
    (remove("checkpoints/*/state"), r"--workdir must hold whole checkpoints, got .*, which cannot be read"),
    (edit("norm.rule", "tf"), r".*config.json must be as the run wrote it: norm.rule must be one of .*, got 'tf'\."),
    (edit("model.name", "cnn10"), r".*config.json must be as the run wrote it: model.stages must be .*"),
    (edit("model.stages", [[4, 4], [4, 4], [8, 9]]), r".* of its config, .*norm6.mean is \(8,\), not \(9,\)\."),
    (edit("data.name", "cifar10"), r".* of its config, .*linear.bias is \(100,\), not \(10,\)\."),
]


@pytest.mark.parametrize(("change", "message"), WRONG_RUNS)
def test_a_folder_that_holds_no_trained_network_is_refused(run, change, message):
    change(run)
    with pytest.raises(InputError, match=f"^{message}") as raised:
        load_trained(run)
    assert "\n" not in str(raised.value)


@pytest.fixture
def mixed(tmp_path):
    """A folder with two pictures and much else."""
    folder = tmp_path / "mixed"
    (folder / "sub").mkdir(parents=True)
    drawing = Image.radial_gradient("L").resize((120, 80)).convert("RGB")
    drawing.save(folder / "b.jpg")
    drawing.convert("RGBA").save(folder / "a.png")
    (folder / "cut.jpg").write_bytes((folder / "b.jpg").read_bytes()[:400])
    (folder / "notes.txt").write_text("mine")
    return folder


def command(*arguments):
    done = subprocess.run(
        [sys.executable, "main.py", "--mode=predict", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


def test_the_command_goes_on_after_a_picture_that_cannot_be_read(run, mixed, tmp_path):
    code, out, err = command(f"--workdir={run}", mixed, tmp_path / "none.png")
    assert code == 2
    assert re.fullmatch(rf"cnn6 of {run}, epoch \d, \d+\.00 % on the test images of cifar100", out[0])
    for line, name in zip(out[1:], ("a.png", "b.jpg"), strict=True):
        assert re.fullmatch(rf"{mixed / name}: (\w+ \d+\.\d\d %, ){{4}}\w+ \d+\.\d\d %", line)
        shown = [float(figure) for figure in re.findall(r"([\d.]+) %", line)]
        assert shown == sorted(shown, reverse=True)
    assert err == [
        f"Skipped {mixed}/notes.txt: Pillow does not recognise it as a picture",
        f"Skipped {mixed}/sub: a folder in a folder",
        f"Error: IMAGE must be a picture that can be read whole, got '{mixed}/cut.jpg': {err[2].split(': ')[-1]}",
        f"Error: IMAGE must be a picture that Pillow reads, got '{tmp_path}/none.png', which is not there.",
    ]


def test_the_command_writes_json(run, mixed):
    code, out, err = command("--json", f"--workdir={run}", mixed / "a.png", mixed / "b.jpg")
    assert (code, err) == (0, [])
    (expected, _) = predicted(run, mixed / "a.png", mixed / "b.jpg")
    first, second = map(json.loads, out)
    assert [first["file"], second["file"]] == [str(mixed / "a.png"), str(mixed / "b.jpg")]
    assert tuple(first["probabilities"]) == class_names("cifar100")
    assert np.float32(list(first["probabilities"].values())).tolist() == expected.probabilities.tolist()
    assert first["probabilities"][first["class"]] == max(first["probabilities"].values())
    assert sum(second["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_errors_stand_in_the_json_too(run, mixed, capsys):
    assert not predict_pictures(run, [mixed / "cut.jpg", mixed / "a.png"], as_json=True)
    cut, fine = map(json.loads, capsys.readouterr().out.splitlines())
    assert cut.keys() == {"file", "error"}
    assert "probabilities" in fine


def test_folders_without_pictures(run, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "notes.txt").write_text("mine")
    assert not predict_pictures(run, [tmp_path / "empty", tmp_path / "texts"])
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 3
    assert (
        err[0]
        == f"Error: IMAGE must be a picture or a folder of pictures, got '{tmp_path}/empty': it holds no picture."
    )

    def forbidden(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(predict.Path, "iterdir", forbidden)
    (shut,) = predict.predict_files(trained.Trained(flatten_of(run), *[None] * 6), [tmp_path / "texts"])
    assert shut.error.endswith("texts': it cannot be read: Permission denied.")


def flatten_of(run):
    return flatten(train.read_config(run))


def test_a_name_that_is_no_utf8(run, mixed, capsys):
    path = mixed / os.fsdecode(b"caf\xe9.png")
    shutil.copy(mixed / "a.png", path)
    assert predict_pictures(run, [path])
    assert r"caf\udce9.png: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a.png",), "--workdir must be given, got nothing"),
        (("--workdir=run", "--config=x.py", "a.png"), "python -m cifar_jax predict does not take --config=x.py"),
        (("--workdir=run", "--config.seed=1", "a.png"), "python -m cifar_jax predict does not take --config.seed=1"),
        (("--mode=train", "--json"), "python -m cifar_jax train does not take --json"),
    ],
)
def test_wrong_flags_are_refused_in_one_sentence(arguments, message):
    code, out, (err,) = command(*arguments)
    assert (code, out) == (2, [])
    assert err.startswith(f"Error: {message}")


def test_no_picture_is_named(run):
    with pytest.raises(InputError, match="IMAGE must name a picture or a folder of pictures, got "):
        predict_pictures(run, [])


def test_a_reader_that_ends_early_is_no_error(run, mixed):
    """As in `| head -1`."""
    process = subprocess.Popen(
        [sys.executable, "main.py", "--mode=predict", f"--workdir={run}", mixed / "a.png"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=120) == 141
