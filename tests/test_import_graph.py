"""Who may import whom: the direction of the design, held by reading the imports of every file."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "cifar_jax"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
# Each module may import those that stand in a row above its own.
LAYERS = [
    {"errors", "interrupt", "progress", "provenance", "batch_norm", "losses", "transforms", "schedules", "torch_random"}
    | {
        "report",
        "report.curves",
        "report.lockstep_plot",
        "report.shell",
        "report.summaries",
    }
    | {"report.speed_curves", "report.wording", "files", "table", "table.lecture"},
    {
        "table.cells",
        "layers",
        "optimizers",
        "devices",
        "cluster",
        "sharding",
        "pictures",
        "data.dataset",
        "data.order",
        "report.ledger_page",
        "commands",
        "report.marked",
    },
    {
        "distributed",
        "report.record",
        "report.speed_table",
        "table.document",
        "models",
        "state",
        "data",
        "data.cifar",
        "data.cache",
        "data.download",
        "data.shapes",
    }
    | {"report.analysis", "report.drawing", "report.recipes"},
    {"steps", "config", "table.markdown", "report.charts", "report.html_tables"},
    {"checkpoint", "workdir", "command_line", "report.sections"},
    {"experiment", "trained", "table.plan", "report.page"},
    {"phases", "predict", "export", "table.record"},
    {"train", "table.launch", "table.watch", "report.predictions"},
    {"table.worker", "report.write"},
    {"table.__main__", "report.__main__"},
]
INSIDE = {"data": {"data.cifar", "data.cache", "data.shapes", "data.download"}}
ONLY_IN = {
    "torch": ("parity", "benchmark"),
    "safetensors": ("parity",),
    "matplotlib": ("report",),
    "altair": ("report",),
    "vl_convert": ("report",),
    "tensorflow_datasets": ("data",),
    "tensorflow": (),
    "configs": (),
}


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def short(name: str) -> str:
    return name.removeprefix("cifar_jax").removeprefix(".")


# Rooms that may import everything, and that nothing else imports.
ROOFTOP = ("parity", "benchmark", "scaling")


def room(name: str) -> str:
    return short(name).split(".")[0]


@pytest.mark.parametrize("module", [name for name in MODULES if short(name) and room(name) not in ROOFTOP])
def test_imports_point_one_way(module):
    level = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    assert short(module) in level, f"{module} has no place in LAYERS yet"
    for name in imports(MODULES[module]) & set(MODULES):
        inside = short(name) in INSIDE.get(short(module).split(".")[0], ())
        if short(name) and not inside and short(name) != "data":
            assert level[short(name)] < level[short(module)], f"{module} must not import {name}"


@pytest.mark.parametrize("module", MODULES)
def test_heavy_libraries_stay_where_they_belong(module):
    for library, rooms in ONLY_IN.items():
        used = any(name.split(".")[0] == library for name in imports(MODULES[module]))
        assert not used or short(module).split(".")[0] in rooms, f"{module} must not import {library}"


def test_only_train_and_config_know_config_dicts():
    users = {short(m) for m, path in MODULES.items() if any(n.startswith("ml_collections") for n in imports(path))}
    assert {user for user in users if room(user) not in ROOFTOP} == {
        "command_line", "config", "experiment", "table.plan", "train", "workdir",
    }  # fmt: skip


def test_there_is_no_utils():
    assert not list(PACKAGE.rglob("util*.py"))


def test_training_imports_no_torch_tensorflow_or_tfds():
    """TFDS takes seconds to import; a start that finds decoded arrays needs none of it."""
    heavy = ("torch", "tensorflow", "tensorflow_datasets")
    code = f"import sys, cifar_jax.runs.train; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
