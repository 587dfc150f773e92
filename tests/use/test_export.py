"""Exported networks, loaded where this package and Flax cannot be imported."""

import hashlib
import inspect
import json
import os
import re
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cifar_jax.data import class_names
from cifar_jax.errors import InputError
from cifar_jax.use import export
from cifar_jax.use.trained import compile_probabilities, load_trained

# What the docstring tells users to run, in a process that has nothing but JAX.
LINES = textwrap.dedent(re.search(r"\n\n(    import jax.export.*?)\n\n", inspect.getdoc(export), re.DOTALL)[1])
ELSEWHERE = """
import sys
for name in ("cifar_jax", "flax", "optax", "orbax", "absl", "ml_collections"):
    sys.modules[name] = None
import numpy as np
every = np.load("images.npy")
for n in (3, len(every)):
    images = every[:n]
    {lines}
    np.save(f"of_{{n}}.npy", probabilities)
"""


@pytest.fixture
def images(trained_run, monkeypatch):
    """The run's test images, for the command to check on too."""
    monkeypatch.setattr(export, "load_dataset", lambda name, folder="": trained_run[2])
    return trained_run[2].test.images


def test_an_artifact_runs_without_this_package(trained_run, images, tmp_path, capsys):
    workdir = trained_run[0]
    assert export.main([f"--workdir={workdir}", str(tmp_path / "OUT")]) == 0
    ours = load_trained(workdir)
    np.save(tmp_path / "images.npy", images)
    program = ELSEWHERE.format(lines=textwrap.indent(LINES, "    ").strip())
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import os; os.chdir({str(tmp_path)!r}){program}"],
        capture_output=True, text=True, timeout=120, env=environment,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    expected = compile_probabilities(ours, 25)(images)
    for n in (3, 25):
        found = np.load(tmp_path / f"of_{n}.npy")
        assert found.dtype == np.float32
        # float32 sums in another program; other images' probabilities are a thousand times as far.
        np.testing.assert_allclose(found, expected[:n], rtol=0, atol=1e-6, strict=True)
    assert np.abs(expected[1:] - expected[:-1]).max(1).min() > 1e-3

    artifact, beside = (tmp_path / "OUT").read_bytes(), json.loads((tmp_path / "OUT.json").read_text())
    assert tuple(jax.export.deserialize(bytearray(artifact)).platforms) == ("cpu", "cuda", "tpu")
    assert beside["sha256"] == hashlib.sha256(artifact).hexdigest()
    assert tuple(beside["class_names"]) == class_names("cifar100")
    assert beside["config"] == json.loads((workdir / "config.json").read_text())
    assert beside["epoch"] == ours.epoch
    assert beside["exported"]["versions"]["jax"] == jax.__version__
    assert beside["check"]["images"] == "25 test images of cifar100"
    assert beside["check"]["largest_difference"] < beside["check"]["tolerance"] == 1e-5
    assert f"Wrote {tmp_path / 'OUT'}" in capsys.readouterr().out


def test_the_check_sees_another_network(trained_run, images, tmp_path, monkeypatch, capsys):
    """Such as one whose first class has a bias of 0.01 more; nothing is written then."""
    exported = export.export

    def wrong(ours):
        linear = ours.variables["params"]["linear"]
        linear = {**linear, "bias": linear["bias"].at[0].add(0.01)}
        params = {**ours.variables["params"], "linear": linear}
        return exported(ours._replace(variables={**ours.variables, "params": params}))

    monkeypatch.setattr(export, "export", wrong)
    assert export.main([f"--workdir={trained_run[0]}", str(tmp_path / "OUT")]) == 1
    assert re.fullmatch(
        r"Error: The artifact must agree with the network to 1e-05, and on 25 test images of cifar100 differs by "
        r"\d\.\de-0\d; nothing was written\.\n",
        capsys.readouterr().err,
    )
    assert not list(tmp_path.iterdir())


def test_nan_is_no_agreement(trained_run, images):
    ours = load_trained(trained_run[0])
    broken = ours._replace(variables=jax.tree.map(lambda leaf: leaf * jnp.nan, ours.variables))
    with pytest.raises(export.CheckError, match="differs by nan"):
        export.check_artifact(export.export(broken), ours, images[:1], "these")


def test_given_pictures_are_checked_on(trained_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "load_dataset", lambda *_: pytest.fail("the data were asked for"))
    Image.radial_gradient("L").resize((90, 60)).save(tmp_path / "p.jpg")
    assert export.main([f"--workdir={trained_run[0]}", str(tmp_path / "OUT"), str(tmp_path / "p.jpg")]) == 0
    assert "On the given pictures it differs from the network by" in capsys.readouterr().out


def test_without_the_runs_data_the_shapes_serve(trained_run, monkeypatch):
    """And nothing is downloaded: the cache folder is asked as if a user had named it."""
    asked = []

    def load_dataset(name, folder=""):
        asked.append((name, folder))
        if name != "shapes":
            raise InputError("not here")
        return trained_run[2]

    monkeypatch.setattr(export, "load_dataset", load_dataset)
    ours = load_trained(trained_run[0])
    assert export.images_to_check(ours, [])[1] == "25 embedded shapes"
    export.images_to_check(ours._replace(config={**ours.config, "data.dir": ""}), [])
    assert asked[0] == ("cifar100", "/nowhere")
    assert asked[2][1].endswith("cifar_jax/tfds")


def test_bfloat16(trained_run, images):
    ours = load_trained(trained_run[0])
    ours = ours._replace(config={**ours.config, "dtype": "bfloat16"}, model=ours.model.clone(dtype=jnp.bfloat16))
    check = export.check_artifact(export.export(ours), ours, images[:9], "these")
    assert check.largest_difference < check.tolerance == 3e-2


def test_it_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    """The disk fills up at the second file."""
    replace = os.replace

    def full(source, target):
        if target.suffix != ".json":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(export.os, "replace", full)
    with pytest.raises(InputError, match="OUT must be a new file that can be written, .*OUT': No space left on device"):
        export.write(tmp_path / "OUT", b"artifact", {})
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    export.write(tmp_path / "OUT", b"artifact", {"a": 1})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["OUT", "OUT.json"]
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "OUT").stat().st_mode & 0o777 == 0o666 & ~umask


REFUSED = [
    ((), r"--workdir, OUT must be given, got nothing"),
    (("--workdir={run}",), r"OUT must be given, got nothing"),
    (("--workdir={tmp}", "{tmp}/OUT"), r"--workdir must be the folder of a run, got .* no readable config.json\."),
    (("--workdir={run}", "{tmp}"), r"OUT must be a new file, got .*, which is a folder\."),
    (("--workdir={run}", ""), r"OUT must be a path, got ''\."),
    (("--workdir={run}", "{tmp}/mine"), r"OUT must be a new file, got .*mine', which exists\."),
    (("--workdir={run}", "{tmp}/other"), r"OUT must be a new file, got .*other.json', which exists\."),
    (("--workdir={run}", "{tmp}/none/OUT"), r"OUT must be a new file in a folder that exists, got .*OUT'\."),
    (("--workdir={run}", "{tmp}/mine/OUT"), r"OUT must be a new file in a folder that exists, got .*OUT'\."),
    (("--workdir={run}", "/proc/OUT"), r"OUT must be a new file in a folder that can be written to, got '/proc/OUT': "),
    (("--workdir={run}", "{tmp}/OUT", "{tmp}/mine"), r"IMAGE must be a picture that Pillow reads, got .*mine', which "),
    (("--workdir={run}", "--nosuch", "{tmp}/OUT"), r"python -m cifar_jax export does not take --nosuch"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_wrong_input_is_refused_in_one_sentence(trained_run, tmp_path, arguments, message):
    for name in ("mine", "other.json"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=f"^{message}") as raised:
        export.main([argument.format(run=trained_run[0], tmp=tmp_path) for argument in arguments])
    assert "\n" not in str(raised.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "other.json"]


def test_the_command_ends_with_2(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "cifar_jax", "export", f"--workdir={tmp_path}", "OUT"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("Error: --workdir must be the folder of a run")
