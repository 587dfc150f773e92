"""Commands that say what they take."""

import importlib

import pytest


@pytest.mark.parametrize(
    "line",
    [
        "benchmark", "benchmark compare", "benchmark curves", "benchmark suite", "parity lockstep", "parity convert",
        "export", "scaling",
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
