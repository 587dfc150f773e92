"""The report's sections: what each says, its charts, and its tables."""

import collections
import html
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cifar_jax.studies.table.report import charts, html_tables
from cifar_jax.studies.table.report.analysis import Analysis
from cifar_jax.studies.table.report.drawing import Chart
from cifar_jax.studies.table.report.recipes import PHASES, Recipe, curve, main_runs
from cifar_jax.studies.table.report.wording import plain, spread

_QUANTITIES = {"accuracy": "Accuracy (%)", "loss": "Cross-entropy loss"}


class Section(NamedTuple):
    """A part of the page under a heading.

    text: HTML above the charts.
    charts: side by side where the page is wide enough.
    after: HTML below them.
    """

    id: str
    title: str
    text: str
    charts: Sequence[Chart] = ()
    after: str = ""


def sections(
    table: dict,
    recipes: Sequence[Recipe],
    analyses: dict[str, Analysis],
    *,
    problems: Sequence[str],
    pictures: Mapping[tuple[str, int], str] | None,
) -> list[Section]:
    """All that there is something to say for.

    Args:
      table: as `cifar_jax.studies.table.document` describes it.
      recipes: of the table.
      analyses: by config, of those with finished runs.
      problems: sentences on what is missing.
      pictures: as `answers` takes them.
    """
    parts = [
        results(table, recipes),
        norm_rules(table, recipes),
        curves(table, recipes),
        learning_rates(table, recipes),
    ]
    if analyses:
        titles = {recipe.config: recipe.title for recipe in recipes}
        parts += answers(analyses, titles, best_config(analyses), pictures)
    return [part for part in (*parts, origin(table, problems)) if part is not None]


def details(summary: str, content: str) -> str:
    """Content that opens on demand."""
    return f"<details><summary>{html.escape(summary)}</summary>\n{content}\n</details>"


def results(table: dict, recipes: Sequence[Recipe]) -> Section:
    """The lecture's table, and how sure each cell is."""
    cells = [(recipe, table["cells"][recipe.config]) for recipe in recipes]
    compared = [cell["within_spread"] for _, cell in cells if cell["within_spread"] is not None]
    verdict = (
        f" Of {len(compared)} means with several seeds, {sum(compared)} lie within two deviations of the lecture's."
        if compared
        else ""
    )
    text = (
        "<p>Test accuracy in percent, mean ± sample deviation over seeds. The maximum over epochs is the lecture's "
        "measure: it picks the epoch on the test set itself, and so flatters a little. The last epoch's accuracy "
        f"picks nothing.{_holdout(table['settings']['holdout'])} A difference is that of the mean maximum from the "
        "lecture's one run, and is given for runs as long as the lecture's on all images. Empty cells have not been "
        f"measured.{verdict}</p>"
    )
    return Section("results", "The lecture's table", text, [charts.results(cells)], html_tables.results(cells))


def _holdout(images: int) -> str:
    if not images:
        return ""
    return (
        f" The best epoch on held-out images is chosen by companion runs that train without {images:,} of the "
        "training images, and its test accuracy is theirs."
    )


def norm_rules(table: dict, recipes: Sequence[Recipe]) -> Section | None:
    """BatchNorm's running averages by each rule; None where no run was evaluated by several."""
    cells = [(recipe, table["cells"][recipe.config]) for recipe in recipes]
    if not any(len(cell["rules"]) > 1 for _, cell in cells):
        return None
    text = (
        "<p>The same trained weights, evaluated with running averages that were kept by three rules; training is the "
        "same under all of them. <code>torch</code> keeps 0.9 of the old average, <code>flax</code> 0.99, and "
        "<code>lecture</code> the 0.1 of the slides, so that little but the last two batches counts. "
        "Percent after the last epoch.</p>"
    )
    return Section(
        "norm-rules", "What the rule for BatchNorm's running averages costs", text, [charts.norm_rules(cells)],
        html_tables.norm_rules(cells),
    )  # fmt: skip


def curves(table: dict, recipes: Sequence[Recipe]) -> Section | None:
    """Learning curves, two charts for each network; None where nothing was trained."""
    drawn, tables = [], []
    styles = list(dict.fromkeys(recipe.name for recipe in recipes))
    for network in dict.fromkeys(recipe.network for recipe in recipes):
        runs = {
            recipe.name: main_runs(table, recipe.config) for recipe in recipes if recipe.network == network
        }  # fmt: skip
        runs = {name: each for name, each in runs.items() if each}
        if not runs:
            continue
        for quantity, axis in _QUANTITIES.items():
            data = {
                name: {phase: curve(each, f"{phase}_{quantity}") for phase in PHASES} for name, each in runs.items()
            }
            chart = charts.curves(
                network, data, quantity=quantity, title=axis, id=_id(quantity, network), styles=styles
            )
            drawn.append(chart)
            tables.append(details(f"{chart.title}, by epoch", html_tables.curves(data, label=chart.title)))
    if not drawn:
        return None
    text = (
        "<p>Mean over seeds, with a band of one deviation to either side. Test is drawn solid, training dashed; "
        "training accuracy is that of the batches as they came, augmented and before each update. Point at an epoch "
        "to read its values, or open the tables below. Where no run of a recipe is done, those under way are "
        "drawn.</p>"
    )
    return Section("curves", "Learning curves", text, drawn, "\n".join(tables))


def _id(quantity: str, network: str) -> str:
    return re.sub("[^a-z0-9]+", "-", f"{quantity} {network}".lower()).strip("-")


def learning_rates(table: dict, recipes: Sequence[Recipe]) -> Section | None:
    """Learning rates by epoch, once for all recipes that share them; None where nothing was trained."""
    shared: dict[tuple, list[str]] = {}
    for recipe in recipes:
        if runs := main_runs(table, recipe.config):
            longest = max((run["history"] for run in runs), key=len)
            shared.setdefault(tuple((row["epoch"], row["lr"]) for row in longest), []).append(recipe.name)
    if not shared:
        return None
    rates = {}
    for pairs, names in shared.items():
        name = "; ".join(dict.fromkeys(names))
        while name in rates:
            name += " (another length)"
        rates[name] = list(pairs)
    text = "<p>As each run recorded it. Recipes that share a schedule share a line.</p>"
    table_text = details("Learning rates by epoch", html_tables.learning_rates(rates))
    return Section("learning-rates", "Learning rates", text, [charts.learning_rates(rates)], table_text)


def answers(
    analyses: dict[str, Analysis], titles: dict[str, str], chosen: str, pictures: Mapping[tuple[str, int], str] | None
) -> list[Section]:
    """What the finished networks answer: by class, confused, wrong, calibrated.

    Args:
      analyses: by config.
      titles: of the configs.
      chosen: the config to show first.
      pictures: addresses by data set and number of a test image; None for a page without.
    """

    def of_chosen(chart: Chart) -> Chart:
        return chart._replace(subtitle=titles[chosen])

    by_dataset: dict[str, dict[str, Analysis]] = {}
    for config, analysis in analyses.items():
        by_dataset.setdefault(analysis.dataset, {})[config] = analysis
    grouped = [
        (each, "" if len(by_dataset) == 1 else f" of {name}") for name, each in by_dataset.items()
    ]  # fmt: skip
    return [
        Section(
            "classes", "Accuracy by class and superclass",
            "<p>A dot is a class, mean over seeds; a bar is the mean of the superclass's classes.</p>",
            [of_chosen(charts.groups(analyses, chosen))],
            "\n".join(
                details(f"Superclasses{of}, every recipe", html_tables.groups(each, titles))
                + details(f"Classes{of}, every recipe", html_tables.classes(each, titles))
                for each, of in grouped
            ),
        ),
        Section(
            "confusion", "Confusion by superclass",
            "<p>Percent of the images of each row's superclass that are answered with a class of each column's, mean "
            "over seeds. Shades follow the root of the share, so that rare confusions show.</p>",
            [of_chosen(charts.confusion(analyses, chosen))],
            _each(analyses, lambda config: details(
                f"The matrix of {titles[config]}", html_tables.confusion(analyses[config]))),
        ),
        Section("mistakes", "The most confident mistakes", _MISTAKES + _without(pictures), after=_each(
            analyses, lambda config: _mistakes(analyses[config], titles[config], pictures))),
        Section(
            "calibration", "Calibration",
            "<p>How often an answer is right by how probable the network says it is, in 15 bins, over all seeds' "
            "answers. Below the dashed line the network is too sure of itself. Grey bars are the share of answers in "
            "each bin. The expected calibration error is the mean distance from the dashed line over all images (Guo "
            "et al., 2017).</p>",
            [of_chosen(charts.calibration(analyses, chosen))],
            html_tables.calibration(analyses, titles) + _each(analyses, lambda config: details(
                f"The curve of {titles[config]}", html_tables.bins(analyses[config]))),
        ),
    ]  # fmt: skip


_MISTAKES = (
    "<p>Wrong answers by their mean probability over all seeds, where a seed that answers otherwise counts as 0. The "
    "confidence given is the mean over the runs that give this answer.</p>"
)


def _without(pictures: Mapping | None) -> str:
    if pictures is not None:
        return ""
    return (
        "<p>Pictures are left out of this copy, because the data set comes with no licence to pass them on. "
        "<code>python -m cifar_jax report --table=table.json --pictures</code> makes a page with them on the machine "
        "that holds the runs.</p>"
    )


def _each(analyses: dict[str, Analysis], content) -> str:
    """One block for each config, of which the page shows the chosen one's."""
    return "\n".join(f'<div data-recipe="{html.escape(config)}">{content(config)}</div>' for config in analyses)


def _mistakes(analysis: Analysis, title: str, pictures: Mapping[tuple[str, int], str] | None) -> str:
    heading = f"<h3>{html.escape(title)}</h3>"
    if pictures is None:
        return heading + html_tables.mistakes(analysis)
    items = []
    for each in analysis.mistakes:
        true, answer = plain(analysis.class_names[each.label]), plain(analysis.class_names[each.predicted])
        items.append(
            f'<li><img src="{pictures[analysis.dataset, each.image]}" width="96" height="96" '
            f'alt="Test image {each.image}: {html.escape(true)}">'
            f"<span><b>{html.escape(answer)}</b> {100 * each.confidence:.1f}&nbsp;%</span>"
            f"<span>is {html.escape(true)}</span>"
            f'<span class="dim small">no. {each.image:,} · {each.runs}/{analysis.runs} runs</span></li>'
        )
    return f'{heading}<ul class="pictures">{"".join(items)}</ul>'


def origin(table: dict, problems: Sequence[str]) -> Section:
    """Command, commit, hardware and versions, and what is missing."""
    entries = {"Command": table["command"], "Commit": table["commit"], "Written": table["date"]}
    for number, each in enumerate(table["origins"], 1):
        name = "Runs" if len(table["origins"]) == 1 else f"Runs, origin {number}"
        entries[name] = _machine(each)
    settings = table["settings"]
    entries["Settings"] = "; ".join(
        f"{key} {', '.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in settings.items() if value not in (None, [], 0)
    )  # fmt: skip
    rows = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value or 'unknown')}</dd></div>"
        for name, value in entries.items()
    )
    begun = [run for run in table["runs"] if run["status"] != "done" and (run["epochs_done"] or run["message"])]
    missing = [
        f"{run['folder']}: {run['status']} after {run['epochs_done']} of {run['epochs']} epochs"
        + (f" ({run['message']})" if run["message"] else "")
        for run in begun
    ]
    waiting = collections.Counter(
        run["config"] for run in table["runs"] if run["status"] != "done" and run not in begun
    )  # fmt: skip
    missing += [f"{config}: {count} runs not begun" for config, count in waiting.items()] + list(problems)
    after = ""
    if missing:
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in missing)
        after = f"<h3>What is missing</h3><ul>{lines}</ul>"
    return Section("origin", "Where this comes from", f'<dl class="origin">{rows}</dl>', after=after)


def _machine(origin: Mapping) -> str:
    hardware, versions = origin["hardware"], origin["versions"]
    parts = [
        ", ".join(hardware["devices"]),
        ", ".join(filter(None, [hardware["processor"], f"{hardware['cores']} cores", f"{hardware['memory_gib']} GiB"])),
        f"commit {origin['commit']}" if origin["commit"] else "",
        ", ".join(f"{package} {version}" for package, version in versions.items()),
    ]
    return "; ".join(filter(None, parts))


def best_config(analyses: dict[str, Analysis]) -> str:
    """The config whose last epoch is the most accurate, on average."""
    return max(analyses, key=lambda config: analyses[config].top1["mean"])


def summary(table: dict, recipes: Sequence[Recipe]) -> str:
    """The page's first paragraph, plain text."""
    main = [run for run in table["runs"] if not run["holdout"]]
    done = [run for run in main if run["status"] == "done"]
    measured = [(table["cells"][recipe.config]["maximum"], recipe) for recipe in recipes]
    measured = [(stat, recipe) for stat, recipe in measured if stat is not None]
    text = f"{len(done)} of {len(main)} runs of {len(recipes)} recipes are done."
    if measured:
        stat, recipe = max(measured, key=lambda pair: pair[0]["mean"])
        text += f" The best is {recipe.title}, with a maximum test accuracy of {spread(stat)} %."
    return text
