"""Commands that say what they take."""

import importlib
import signal
import sys

import pytest

from cifar_jax.commands import exit_code
from cifar_jax.devices.interrupt import Interrupted
from cifar_jax.errors import InputError


@pytest.mark.parametrize(
    "line",
    [
        "benchmark", "benchmark compare", "benchmark curves", "benchmark suite", "parity lockstep", "parity convert",
        "export", "scaling", "report.record", "report.speed_table", "table.markdown",
    ],
)  # fmt: skip
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_the_command_s_own(line, flag, capsys):
    name, *rest = line.split()
    if name == "parity":
        pytest.importorskip("torch")
    room = name in ("benchmark", "parity")
    module = importlib.import_module(f"cifar_jax.{name}.__main__" if room else f"cifar_jax.{name}")
    assert not module.main([*rest, flag])
    assert f"python -m cifar_jax.{line.removesuffix(' compare')}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (None, 0, ""),
        (InputError("--out must be a file."), 2, "Error: --out must be a file.\n"),
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
