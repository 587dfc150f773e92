"""The report's tables in HTML: every value that its charts show."""

import html
from collections.abc import Sequence

import numpy as np

from cifar_jax.studies.table.report.analysis import Analysis
from cifar_jax.studies.table.report.recipes import PHASES, Recipe
from cifar_jax.studies.table.report.wording import plain, spread

Cells = Sequence[tuple[Recipe, dict]]


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, label: str, words: int = 1) -> str:
    """A table in a region that scrolls by itself, by keyboard too.

    Args:
      header: text of the column heads.
      rows: text of the cells, the first of each row its head.
      label: what the table shows, for screen readers.
      words: how many of the first columns hold words; the others are set as numbers.
    """

    def cell(value: str, place: int, *, head: bool) -> str:
        tag, scope = ("th", "col" if head else "row") if head or not place else ("td", "")
        attributes = (f' scope="{scope}"' if scope else "") + (' class="n"' if place >= words else "")
        return f"<{tag}{attributes}>{html.escape(value)}</{tag}>"

    def line(values: Sequence[str], *, head: bool) -> str:
        return "<tr>" + "".join(cell(value, place, head=head) for place, value in enumerate(values)) + "</tr>"

    body = "\n".join(line(row, head=False) for row in rows)
    return (
        f'<div class="scroll" role="region" aria-label="{html.escape(label)}" tabindex="0">\n<table>\n'
        f"<thead>{line(header, head=True)}</thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )


def results(cells: Cells) -> str:
    """The lecture's table with what was measured."""
    header = (
        "recipe", "lecture", "maximum", "difference", "within 2 deviations", "last epoch", "best on held-out",
        "epoch of maximum", "runs", "seconds a run",
    )  # fmt: skip
    rows = [
        (
            recipe.title,
            "" if cell["lecture"] is None else f"{cell['lecture']:.2f} ({cell['lecture_epoch']})",
            spread(cell["maximum"]),
            "" if cell["difference"] is None else f"{cell['difference']:+.2f}",
            {True: "yes", False: "no", None: ""}[cell["within_spread"]],
            spread(cell["final"]),
            spread(cell["at_best_holdout"]),
            spread(cell["maximum_epoch"], 1),
            str(cell["runs"]),
            spread(cell["seconds"], 0),
        )
        for recipe, cell in cells
    ]
    return table(header, rows, label="The lecture's table")


def norm_rules(cells: Cells) -> str:
    """Test accuracy after the last epoch under each rule, and what the lecture's costs."""
    rules = list(dict.fromkeys(rule for _, cell in cells for rule in cell["rules"]))
    rows = [
        (
            recipe.title,
            *(spread(cell["rules"].get(rule, {}).get("final")) for rule in rules),
            spread((cell["lecture_rule_cost"] or {}).get("final")),
        )
        for recipe, cell in cells
        if cell["rules"]
    ]
    return table(("recipe", *rules, "points lost by the lecture's"), rows, label="Accuracy under each rule")


def curves(curves: dict[str, dict[str, list]], *, label: str) -> str:
    """Mean and deviation by epoch, of each recipe's name and phase."""
    columns = {f"{name}, {phase}": dict(phases[phase]) for name, phases in curves.items() for phase in PHASES}
    epochs = sorted(set().union(*columns.values()))
    rows = [(str(epoch), *(spread(column.get(epoch)) for column in columns.values())) for epoch in epochs]
    return table(("epoch", *columns), rows, label=label)


def learning_rates(rates: dict[str, list[tuple[int, float]]]) -> str:
    """The rate of each epoch by the recipes that share it."""
    columns = {name: dict(pairs) for name, pairs in rates.items()}
    epochs = sorted(set().union(*columns.values()))
    rows = [
        (str(epoch), *(f"{column[epoch]:.4g}" if epoch in column else "" for column in columns.values()))
        for epoch in epochs
    ]
    return table(("epoch", *columns), rows, label="Learning rates by epoch")


def groups(analyses: dict[str, Analysis], titles: dict[str, str]) -> str:
    """Accuracy of each superclass, of all recipes of one data set."""
    analysis = next(iter(analyses.values()))
    rows = [
        (plain(name), *(spread(each.by_group[number], 1) for each in analyses.values()))
        for number, name in enumerate(analysis.group_names)
    ]
    return table(("superclass", *(titles[config] for config in analyses)), rows, label="Accuracy by superclass")


def classes(analyses: dict[str, Analysis], titles: dict[str, str]) -> str:
    """Accuracy of each class, of all recipes of one data set, by superclass."""
    analysis = next(iter(analyses.values()))
    rows = [
        (
            plain(analysis.class_names[number]),
            plain(analysis.group_names[analysis.group_of[number]]),
            *(spread(each.by_class[number], 1) for each in analyses.values()),
        )
        for number in np.argsort(analysis.group_of, kind="stable")
    ]
    header = ("class", "superclass", *(titles[config] for config in analyses))
    return table(header, rows, label="Accuracy by class", words=2)


def confusion(analysis: Analysis) -> str:
    """Percent of the images of each row's superclass that are answered with each column's, by number."""
    header = ["true, answered", *(str(i) for i in range(1, len(analysis.group_names) + 1))]
    rows = [
        [f"{i} {plain(name)}", *("" if np.isnan(value) else f"{value:.1f}" for value in line)]
        for i, (name, line) in enumerate(zip(analysis.group_names, analysis.confusion, strict=True), 1)
    ]
    return table(header, rows, label="Confusion by superclass")


def calibration(analyses: dict[str, Analysis], titles: dict[str, str]) -> str:
    """Accuracy, top-5 accuracy and calibration error of each recipe."""
    rows = [
        (titles[config], spread(each.top1), spread(each.top5), spread(each.calibration_error))
        for config, each in analyses.items()
    ]
    header = ("recipe", "accuracy", "top-5 accuracy", "calibration error (points)")
    return table(header, rows, label="Calibration of every recipe")


def bins(analysis: Analysis) -> str:
    """The calibration curve of one recipe."""
    result = analysis.calibration
    width = 100 / len(result.count)
    rows = [
        (f"{i * width:.1f} to {(i + 1) * width:.1f}", f"{result.confidence[i]:.1f}", f"{result.accuracy[i]:.1f}",
         f"{count:,}")
        for i, count in enumerate(result.count) if count
    ]  # fmt: skip
    return table(("bin (%)", "confidence (%)", "accuracy (%)", "answers"), rows, label="Calibration curve")


def mistakes(analysis: Analysis) -> str:
    """The most confident mistakes, without their pictures."""
    rows = [
        (
            f"{each.image:,}", plain(analysis.class_names[each.label]), plain(analysis.class_names[each.predicted]),
            f"{100 * each.confidence:.1f}", f"{each.runs} of {analysis.runs}",
        )
        for each in analysis.mistakes
    ]  # fmt: skip
    header = ("test image", "is", "answered", "confidence (%)", "runs that say so")
    return table(header, rows, label="The most confident mistakes", words=3)
