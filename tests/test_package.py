"""The package as `pyproject.toml` declares it."""

import re
import subprocess
import sys
import tomllib

from conftest import ROOT

import cifar_jax

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_folder_of_the_package_is_installed():
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "cifar_jax").rglob("*.py")}
    expected = {".".join(folder.parts) for folder in folders} | {"cifar_jax.configs"}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == expected


def test_the_lowest_versions_that_are_tested_are_those_that_are_allowed():
    allowed = dict(re.match(r"([\w-]+)>=([\w.]+)$", line).groups() for line in PROJECT["project"]["dependencies"])
    tested = dict(line.split("==") for line in (ROOT / ".ci" / "lowest.txt").read_text().split())
    assert allowed.keys() == tested.keys()
    for name, version in allowed.items():
        assert tested[name].startswith(version), f"{name}>={version} is tested with {tested[name]}"


def test_what_people_import_is_there():
    assert cifar_jax.__version__ == "0.2.0"
    for name in set(cifar_jax.__all__) - {"compare"}:  # which needs torch
        assert getattr(cifar_jax, name).__name__ == name
    assert set(cifar_jax.__all__) < set(dir(cifar_jax))
    assert (ROOT / "cifar_jax" / "py.typed").exists()


def test_importing_the_package_loads_nothing_else():
    code = "import sys, cifar_jax; print([name for name in ('jax', 'flax', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
