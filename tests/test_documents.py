"""What README.md and docs/ say, held against the files and the commands that they speak of."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from cifar_jax import __main__ as entry
from cifar_jax.fill import BLOCKS, filled
from cifar_jax.marked import has

DOCUMENTS = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")]
DOCUMENTS += sorted((ROOT / "docs").glob("*.md"))
README = (ROOT / "README.md").read_text()


# Files that a reader makes: by a command, or in an example of how to add a network.
NOT_YET = ("results/benchmark_gpu.json", "configs/cnn8_adam.py")


def blocks(document: Path) -> list[str]:
    """The command lines of a document's sh blocks, without comments; continued lines are one."""
    text = document.read_text()
    lines = [block.replace("\\\n", " ") for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)]
    commands = [re.sub(r"\s+#.*", "", line).strip() for block in lines for line in block.splitlines()]
    return [line for line in commands if line and not line.startswith("#")]


COMMANDS = [(path.name, line) for path in DOCUMENTS for line in blocks(path)]


def test_there_are_exactly_two_commands():
    section = re.search(r"## Two commands\n(.*?)\n## ", README, re.DOTALL)[1]
    assert len(re.findall(r"```sh\n[^\n]+\n```", section)) == section.count("```") / 2 == 2


def test_the_readme_is_short():
    generated = re.sub(r"<!-- results:.*?<!-- end of results -->", "", README, flags=re.DOTALL)
    assert len(generated.split()) <= 1500


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_are_named_exist(document):
    for name in re.findall(
        r"(?:configs|results|cifar_jax|examples|tests)/[\w/]+\.(?:py|json|png|html)", document.read_text()
    ):
        assert (ROOT / name).exists() or name in NOT_YET, f"{document.name} names {name}"


@pytest.mark.parametrize(("name", "line"), COMMANDS)
def test_commands_and_their_flags_exist(name, line, capsys):
    """Each `python -m cifar_jax ...`, `cifar-jax ...` or `python main.py ...` names a command and flags of its help."""
    found = re.search(r"(?:python -m cifar_jax(?!\.)|cifar-jax|python main\.py)(.*)", line)
    if found is None or "MODE" in line:
        return
    words = shlex.split(found[1].split("&&")[0].split("|")[0])
    if "main.py" in found[0]:
        mode = next((word.partition("=")[2] for word in words if word.startswith("--mode=")), "train")
        words = [mode, *(word for word in words if not word.startswith("--mode="))]
    if not words or words[0].startswith("-"):
        return
    command, rest = entry.find(words)
    with pytest.raises(SystemExit):
        entry.run([*command.split(), "--help"])
    text = capsys.readouterr().out
    for word in rest:
        if word.startswith("--") and not word.startswith("--config."):
            assert word.partition("=")[0] in text, f"{name}: {line}"


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if any(has(path.read_text(), b) for b in BLOCKS)])
def test_generated_blocks_are_not_stale(document):
    text = document.read_text()
    link = "results" if document.parent == ROOT else "../results"
    assert filled(text, ROOT / "results", link) == text, f"renew it: python -m cifar_jax fill {document.name}"


def test_the_library_page_runs():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--doctest-glob=*.md", "docs/library.md"],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
