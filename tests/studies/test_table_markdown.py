"""The table in Markdown: every number where it belongs, and nothing where there is none."""

import json
import re

import pytest
import table_example
from conftest import ROOT

from cifar_jax.errors import InputError
from cifar_jax.fill import filled, main
from cifar_jax.studies.table.lecture import EPOCHS, LECTURE
from cifar_jax.studies.table.markdown import markdown, short_markdown


def rows(text, place=0):
    """Of the table at `place`: each row by its first two cells, as a dict by its heads."""
    table = [block for block in text.split("\n\n") if block.startswith("| network")][place].splitlines()
    heads, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table if "---" not in line]
    return {(line[0], line[1]): dict(zip(heads, line, strict=True)) for line in lines}


@pytest.fixture(scope="module")
def table():
    return table_example.example(seeds=3)


def test_a_row_of_the_main_table(table):
    row, cell = rows(markdown(table))["CNN10, 32x32", "SGD, StepLR"], table["cells"]["cnn10_step"]
    assert row["lecture"] == "66.58 (30)"
    assert row["maximum"] == f"{cell['maximum']['mean']:.2f} ± {cell['maximum']['sd']:.2f}"
    assert row["final epoch"] == f"{cell['final']['mean']:.2f} ± {cell['final']['sd']:.2f}"
    assert row["chosen on held-out"].startswith(f"{cell['at_best_holdout']['mean']:.2f} ± ")
    assert row["difference"] == f"{cell['difference']:+.2f}"
    assert row["within 2 sd"] == ("yes" if cell["within_spread"] else "no")
    assert (row["epochs"], row["runs"]) == ("30", "3")
    assert row["time of a run"].startswith("1 min ")


def test_what_was_not_measured_is_empty(table):
    row = rows(markdown(table))["CNN10, 64x64", "SGD, StepLR"]
    assert {head for head, text in row.items() if text} == {"network", "recipe", "lecture"}
    single = rows(markdown(table))["CNN10, 64x64", "Adam"]
    assert single["within 2 sd"] == ""
    assert "±" not in single["maximum"]


def test_the_cost_of_the_lectures_rule(table):
    row, cell = rows(markdown(table), 1)["CNN6, 32x32", "Adam"], table["cells"]["cnn6_adam"]
    cost = cell["lecture_rule_cost"]["final"]
    assert row["cost: final"] == f"{cost['mean']:.2f} ± {cost['sd']:.2f}"
    assert row["lecture: maximum"].startswith(f"{cell['rules']['lecture']['maximum']['mean']:.2f} ")
    assert row["flax: final"].startswith(f"{cell['rules']['flax']['final']['mean']:.2f} ")


def test_the_short_table_has_the_same_figures(table):
    whole, short = rows(markdown(table)), rows(short_markdown(table))
    assert list(whole) == list(short)
    for name, row in short.items():
        assert row == {head: whole[name][head] for head in row}
    assert list(short["CNN6, 32x32", "Adam"])[2:] == ["lecture", "maximum", "final epoch", "epochs", "runs"]
    assert short_markdown(table).splitlines()[-1] == markdown(table).splitlines()[-1]  # where they come from
    assert "picked on the test set" in short_markdown(table)


def test_it_says_how_the_maximum_is_picked(table):
    assert "it is picked on the test set" in markdown(table)


def test_missing_runs_are_listed(table):
    missing = re.search(r"Not in the table:\n\n((?:- .*\n)+)", markdown(table))[1].splitlines()
    assert missing[0].startswith("- cnn10_64_adam, seed 1: 7 of 30 epochs, at most ")
    assert missing[0].endswith("failed: The loss became nan in epoch 8, step 12, at learning rate 0.001.")
    assert missing[1].startswith("- cnn10_64_adam, seed 2: 11 of 30 epochs, at most ")
    assert "cnn10_64_adam, seed 1, 5,000 held out: 7 of 30" in missing[2]
    assert missing[-1] == "- 6 runs not started"


def test_where_the_figures_come_from(table):
    assert markdown(table).splitlines()[-1] == (
        "`python -m cifar_jax table --configs=configs/cnn*_*.py`, commit 0123456789ab, on 2 CPU cores (A processor)."
    )


def test_a_table_of_other_configs_has_their_rows_alone():
    table = table_example.document(
        [table_example.Column("quickstart", "torch", 5, True)], [table_example.run("quickstart", 0, epochs=5)],
        origins=[], settings={"holdout": 0}, command="c", commit=None, date="d",
    )  # fmt: skip
    assert list(rows(markdown(table))) == [("quickstart", "")]


def test_the_lectures_figures_stand_in_the_configs():
    for name, result in LECTURE.items():
        text = (ROOT / "configs" / f"{name}.py").read_text()
        assert f"{result.accuracy:.2f} % at epoch {result.epoch} of {EPOCHS}" in text


def test_a_missing_marker_is_named():
    with pytest.raises(ValueError, match="must have markers such as"):
        filled("no markers", ROOT / "results")


def test_the_command_writes_between_the_markers(tmp_path, table):
    (tmp_path / "results").mkdir()
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- table: x -->\nold\n<!-- end of table -->\nafter\n")
    main([str(readme)])
    assert list(rows(readme.read_text())) == [(result.network, result.recipe) for result in LECTURE.values()]
    assert "±" not in readme.read_text()
    (tmp_path / "results" / "table.json").write_text(json.dumps(table))
    main([str(readme)])
    text = readme.read_text()
    assert text.startswith("before\n<!-- table: x -->\n\n| network |")
    assert text.endswith("\n\n<!-- end of table -->\nafter\n")
    assert markdown(table) in text
    readme.write_text("no markers")
    with pytest.raises(InputError, match="cannot be filled: it must have markers such as"):
        main([str(readme)])
    assert readme.read_text() == "no markers"
