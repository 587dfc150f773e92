"""Who may import whom: the direction of the design, by room, held by reading the imports of every file."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "cifar_jax"
# A room may import those before it, and nothing after it.
ROOMS = (("nn", "data", "devices"), ("runs",), ("use",), ("parity", "studies"))
# Modules beside the rooms: these know nothing of them, but for the signals that end a command; others know everything.
GROUND = ("errors", "files", "marked", "page_frame", "command_line")
# What the names before version 0.2 call, which stand beside the rooms and do nothing else.
ENTRY = "cifar_jax.__main__"
# A library that takes long to load, or that not everyone has, and where it may be imported.
ONLY_IN = {
    "torch": ("parity", "studies"),
    "safetensors": ("parity",),
    "matplotlib": ("runs", "parity", "studies"),
    "altair": ("studies",),
    "vl_convert": ("studies",),
    "tensorflow_datasets": ("data",),
    "tensorflow": (),
    "configs": (),
}
FILES = sorted(PACKAGE.rglob("*.py"))


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


MODULES = {dotted(path): path for path in FILES}


def part(module: str) -> str:
    """The room or the module at the top that a name belongs to; '' for the package itself."""
    return module.split(".")[1] if "." in module else ""


def level(name: str) -> int:
    if name in GROUND:
        return 0
    return next((i for i, row in enumerate(ROOMS, 1) if name in row), len(ROOMS) + 1)


def test_there_are_seven_rooms_and_each_says_what_it_is_for():
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert rooms == {room for row in ROOMS for room in row}
    for room in rooms:
        text = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text()))
        assert text, f"{room} does not say what it is for"


@pytest.mark.parametrize("path", FILES, ids=dotted)
def test_imports_point_one_way(path):
    here = part(dotted(path))
    for name in imports(path) & set(MODULES):
        there = part(name)
        if here == there or not there or name == ENTRY:
            continue
        if here == "command_line" and name == "cifar_jax.devices.interrupt":
            continue
        assert level(there) < level(here) or (not level(here) and not level(there)), f"{here} imports {name}"


@pytest.mark.parametrize("path", [path for path in FILES if part(dotted(path)) == "studies"], ids=dotted)
def test_a_study_imports_no_other(path):
    here = dotted(path).split(".")[2:3]
    there = {name.split(".")[2] for name in imports(path) & set(MODULES) if name.startswith("cifar_jax.studies.")}
    assert there <= set(here)


def test_no_circle_between_modules():
    edges = {
        name: {
            other
            for other in imports(path) & set(MODULES) - {name, ENTRY}
            if part(other) and not name.startswith(f"{other}.")  # a module may name the package that it is in
        }
        for name, path in MODULES.items()
    }
    done: set[str] = set()

    def visit(name, trail):
        assert name not in trail, f"a circle: {' -> '.join([*trail[trail.index(name) :], name])}"
        if name not in done:
            for other in edges[name]:
                visit(other, [*trail, name])
            done.add(name)

    for name in edges:
        visit(name, [])


@pytest.mark.parametrize("path", FILES, ids=dotted)
def test_libraries_stay_where_they_belong(path):
    for library, rooms in ONLY_IN.items():
        used = any(name.split(".")[0] == library for name in imports(path))
        assert not used or part(dotted(path)) in rooms, f"{path} must not import {library}"


def test_there_is_no_utils():
    assert not list(PACKAGE.rglob("util*.py"))


def test_what_a_student_reads_is_an_evening():
    """BatchNorm, layers, networks, transforms, losses, optimizers, schedules and the training step."""
    lines = [
        len(path.read_text().splitlines())
        for path in [*(PACKAGE / "nn").glob("*.py"), PACKAGE / "runs" / "steps.py"]
        if path.name != "fused.py"
    ]
    assert sum(lines) <= 1300


def test_training_imports_no_torch_tensorflow_or_tfds():
    """TFDS takes seconds to import; a start that finds decoded arrays needs none of it."""
    heavy = ("torch", "tensorflow", "tensorflow_datasets")
    code = f"import sys, cifar_jax.runs.train; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
