"""All commands in one way: found by name, with a help of their own, and ended alike."""

import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

from cifar_jax import __main__ as entry
from cifar_jax.command_line import Parser, exit_code, integer, number
from cifar_jax.devices.interrupt import Interrupted
from cifar_jax.errors import DivergedError, InputError


def run_process(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120,
        env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize("name", entry.COMMANDS)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_the_commands_own(name, flag, capsys):
    assert exit_code(entry.run, [*name.split(), flag]) == 0
    shown = capsys.readouterr()
    assert f"python -m cifar_jax {name}" in shown.out
    assert shown.err == ""


def test_help_needs_no_optional_package(tmp_path):
    for package in ("torch", "safetensors", "altair", "vl_convert"):
        (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError('none', name={package!r})")
    code = """
from cifar_jax import __main__ as entry
from cifar_jax.command_line import exit_code
print({name: exit_code(entry.run, [*name.split(), "--help"]) for name in entry.COMMANDS})
"""
    done = run_process("-c", code, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(dict.fromkeys(entry.COMMANDS, 0))
    done = run_process("-m", "cifar_jax", "ledger", PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert done.returncode == 2
    assert done.stderr == "Error: this command needs torch, which pip install '.[torch]' installs.\n"


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("help",)])
def test_all_commands_are_listed(arguments, capsys):
    assert exit_code(entry.run, list(arguments)) == (0 if arguments else 2)
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in entry.COMMANDS)


def test_main_py_is_train_evaluate_and_predict():
    done = run_process("main.py", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--config.KEY" in done.stdout
    assert "norm.momentum" in done.stdout
    done = run_process("main.py", "--mode=predict", "--help")
    assert "IMAGE" in done.stdout


@pytest.mark.parametrize("name", ["table", "report", "benchmark", "export", "scaling", "parity"])
def test_earlier_names_still_run(name):
    done = run_process("-m", f"cifar_jax.{name}", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"python -m cifar_jax {'ledger' if name == 'parity' else name}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tabel"], "The command must be one of train, .*, got 'tabel'"),
        (["train", "--confg=x"], "python -m cifar_jax train does not take --confg=x; .* --help lists what it takes"),
        (["train", "now"], "does not take now"),
        (["train", "--config.seed"], "--config.seed must be followed by = and a value, got --config.seed"),
        (["predict"], "--workdir must be given, got nothing"),
        (["predict", "--workdir"], "--workdir must be followed by a value, got nothing"),
        (["predict", "--config.seed=1", "--workdir=x"], "does not take --config.seed=1"),
        (["convert", "a.pt", "b", "--config.seed=1"], "--config must name a config where --config.seed changes it"),
        (["train", "--workdir="], "--workdir must be a path, got ''"),
        (["predict", "--workdir=~no-such-user/run"], "--workdir must be a path, got '~no-such-user/run': "),
        (["benchmark", "--epochs=1"], "--epochs must be an integer of at least 2, got '1'"),
        (["benchmark", "--precision=low"], "--precision must be one of tensorfloat32, highest, got low"),
        (["benchmark", "suite", "--budget=nan"], "--budget must be a number of at least 1, got 'nan'"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(arguments, message):
    with pytest.raises(InputError, match=message):
        entry.run(arguments)


@pytest.mark.parametrize("text", ["0", "1e3", "9" * 400, "x", ""])
def test_numbers_of_flags_are_checked(text):
    parser = Parser("x", "")
    parser.add_argument("--n", type=integer(1))
    parser.add_argument("--x", type=number(1))
    with pytest.raises(InputError, match="^--n must be an integer of at least 1, got "):
        parser.parse_args([f"--n={text}"])
    if text not in ("1e3",):
        with pytest.raises(InputError, match="^--x must be a number of at least 1, got "):
            parser.parse_args([f"--x={text}"])


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (None, 0, ""),
        (InputError("--out must be a file."), 2, "Error: --out must be a file.\n"),
        (DivergedError("The loss became nan."), 1, "Error: The loss became nan.\n"),
        (Interrupted(signal.SIGTERM, "Stopped; go on."), 143, "Stopped; go on.\n"),
        (KeyboardInterrupt(), 130, "Stopped.\n"),
        (BrokenPipeError(), 141, ""),
    ],
)
def test_how_a_command_ends(error, code, said, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # put back what a broken pipe takes away

    def main(argv):
        assert argv == ["--out=x"]
        if error is not None:
            raise error

    assert exit_code(main, ["--out=x"]) == code
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    "backend", ["module://matplotlib_inline.backend_inline", pytest.param("no-such-backend", marks=pytest.mark.slow)]
)
def test_a_notebooks_backend_is_not_asked_for(backend, tmp_path):
    done = run_process(
        "main.py", "--config=quickstart", "--config.model.stages=((2,2),(2,2),(2,2))", "--config.data.limit_train=100",
        "--config.data.limit_test=100", "--config.train.epochs=1", f"--workdir={tmp_path / 'run'}", MPLBACKEND=backend,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "run" / "curves.png").stat().st_size > 10_000


def test_a_missing_package_that_is_no_extra_is_not_hidden():
    def main(argv):
        raise ModuleNotFoundError("No module named 'numpy'", name="numpy")

    with pytest.raises(ModuleNotFoundError):
        exit_code(main, [])
