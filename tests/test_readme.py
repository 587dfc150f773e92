"""What the README says, held against the files it speaks of."""

import re

from conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_there_are_exactly_two_commands():
    section = re.search(r"## Two commands\n(.*?)\n## ", README, re.DOTALL)[1]
    assert len(re.findall(r"```sh\n[^\n]+\n```", section)) == section.count("```") / 2 == 2


def test_every_path_in_the_layout_exists():
    layout = re.search(r"## Layout\n(.*?)\n\n[A-Z]", README, re.DOTALL)[1]
    for line in layout.strip().splitlines():
        indent = len(line) - len(line.lstrip()) - 4
        for name in re.match(r"\s*([^\s,]+(?:, [^\s,]+)*)", line)[1].split(", "):
            path = ROOT / "cifar_jax" / name if indent == 2 else ROOT / name
            assert path.exists(), name


def test_every_config_in_the_readme_exists():
    for name in re.findall(r"configs/\w+\.py", README):
        assert (ROOT / name).exists(), name
