"""The report's charts, in Altair; `drawing` draws them."""

from collections.abc import Iterable, Sequence

import altair as alt
import numpy as np

from cifar_jax.studies.table.report.analysis import Analysis
from cifar_jax.studies.table.report.drawing import SERIES, Chart
from cifar_jax.studies.table.report.recipes import PHASES, SEPARATOR, Recipe
from cifar_jax.studies.table.report.wording import plain, spread

# Beside long labels a phone has no room for a legend in one row.
_COLUMN = alt.Legend(columns=1)
# A recipe's network above its name, so that a phone has room for more than the labels.
_TWO_LINES = alt.Axis(labelExpr=f"split(datum.label, '{SEPARATOR}')", labelOffset=-7)
_FEW_TICKS = alt.Axis(tickCount=6)
_NEAR = alt.Scale(zero=False, nice=True)
_COLORS = [f"var(--series{i})" for i in range(len(SERIES))]
_SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down"]
_BAR = "M-0.25,-1H0.25V1H-0.25Z"
_DASHES = [[1, 0], [7, 3], [2, 2], [8, 3, 2, 3], [12, 3], [4, 4]]
# The parameter that chooses the recipe of a chart; the page sets it.
CHOSEN = "chosen"
# Pixels from one label to the next.
_ROW, _SMALL_ROW = 36, 20
# Epochs from one marker to the next; the last epoch has one too.
_MARK_EVERY = 5


def results(cells: Sequence[tuple[Recipe, dict]]) -> Chart:
    """Maximum test accuracy of every seed, mean and deviation, and the lecture's figure, by recipe."""
    data: dict[str, list[dict]] = {}
    seeds, means, lecture = [], [], []
    for recipe, cell in cells:
        if cell["lecture"] is not None:
            lecture.append({"recipe": recipe.title, "accuracy": cell["lecture"], "what": "lecture"})
        if (stat := cell["maximum"]) is not None:
            sd = stat["sd"] or 0.0
            seeds += [{"recipe": recipe.title, "accuracy": _round(v), "what": "one seed"} for v in stat["values"]]
            means.append({
                "recipe": recipe.title, "accuracy": _round(stat["mean"]), "text": spread(stat),
                "low": _round(stat["mean"] - sd), "high": _round(stat["mean"] + sd),
            })  # fmt: skip
    what = ["one seed", "mean, deviation", "lecture"]
    color = alt.Color(
        "what:N", title=None, legend=_COLUMN, scale=alt.Scale(domain=what, range=[_COLORS[0], _COLORS[0], _COLORS[1]])
    )
    shape = alt.Shape(
        "what:N", title=None, legend=_COLUMN, scale=alt.Scale(domain=what, range=["circle", _BAR, "diamond"])
    )
    y = alt.Y("recipe:N", title=None, sort=[recipe.title for recipe, _ in cells], axis=_TWO_LINES)
    axis = {"title": "Maximum test accuracy (%)", "scale": _NEAR, "axis": _FEW_TICKS}
    x = alt.X("accuracy:Q", **axis)
    tip = [alt.Tooltip("recipe:N", title="recipe"), alt.Tooltip("accuracy:Q", title="accuracy (%)", format=".2f")]
    layers = [
        alt.Chart(_named(data, "means", means)).mark_rule(strokeWidth=2, color=_COLORS[0]).encode(
            y=y, x=alt.X("low:Q", **axis), x2="high:Q"
        ),
        alt.Chart(_named(data, "seeds", seeds)).mark_point(filled=True, size=30, opacity=0.55).encode(
            y=y, x=x, color=color, shape=shape, tooltip=[*tip, alt.Tooltip("what:N", title="is")]
        ),
        alt.Chart(_named(data, "means", means)).mark_tick(thickness=3, size=18, color=_COLORS[0], opacity=1).encode(
            y=y, x=x, tooltip=[tip[0], alt.Tooltip("text:N", title="mean ± deviation")]
        ),
        alt.Chart(_named(data, "lecture", lecture)).mark_point(filled=True, size=60, opacity=1).encode(
            y=y, x=x, color=color, shape=shape, tooltip=[*tip, alt.Tooltip("what:N", title="is")]
        ),
    ]  # fmt: skip
    sentence = "; ".join(
        f"{recipe.title}: {spread(cell['maximum']) or 'not measured'}, lecture {_or_none(cell['lecture'])}"
        for recipe, cell in cells
    )
    return Chart(
        "results", "Maximum test accuracy", f"Maximum test accuracy in percent. {sentence}.",
        alt.layer(*layers).properties(height=_ROW * len(cells)), data,
    )  # fmt: skip


def norm_rules(cells: Sequence[tuple[Recipe, dict]]) -> Chart:
    """The last epoch's test accuracy under each rule for BatchNorm's running averages, by recipe."""
    data: dict[str, list[dict]] = {}
    rows, names = [], []
    for recipe, cell in cells:
        for rule, under in cell["rules"].items():
            if (stat := under["final"]) is not None:
                names += [rule] if rule not in names else []
                row = {"recipe": recipe.title, "rule": rule, "accuracy": _round(stat["mean"]), "text": spread(stat)}
                rows.append(row)
    chart = alt.Chart(_named(data, "rows", rows)).mark_point(filled=True, size=70, opacity=0.85).encode(
        y=alt.Y("recipe:N", title=None, sort=[recipe.title for recipe, _ in cells], axis=_TWO_LINES),
        x=alt.X("accuracy:Q", title="Test accuracy, last epoch (%)", scale=_NEAR, axis=_FEW_TICKS),
        color=alt.Color("rule:N", title=None, legend=_COLUMN, scale=_scale(names, _COLORS)),
        shape=alt.Shape("rule:N", title=None, legend=_COLUMN, scale=_scale(names, _SHAPES)),
        tooltip=[
            alt.Tooltip("recipe:N", title="recipe"), alt.Tooltip("rule:N", title="rule"),
            alt.Tooltip("text:N", title="accuracy (%)"),
        ],
    )  # fmt: skip
    sentence = "; ".join(f"{row['recipe']} by {row['rule']}'s rule: {row['text']}" for row in rows)
    return Chart(
        "norm-rules", "BatchNorm's running averages by three rules",
        f"Test accuracy in percent after the last epoch. {sentence}.",
        chart.properties(height=_ROW * len({row["recipe"] for row in rows})), data,
    )  # fmt: skip


def curves(
    network: str, curves: dict[str, dict[str, list]], *, quantity: str, title: str, id: str, styles: Sequence[str]
) -> Chart:
    """Mean and deviation by epoch, both phases, of the recipes of one network.

    `curves` has, of each recipe's name and each phase, pairs of epoch and statistic. `styles` are the names of all
    networks' recipes, so that one looks the same in all their charts.
    """
    data: dict[str, list[dict]] = {}
    names = list(curves)
    rows, tips = [], {}
    for i, (name, phases) in enumerate(curves.items()):
        for j, phase in enumerate(PHASES):
            for epoch, stat in phases[phase]:
                sd = stat["sd"] or 0.0
                row = {"recipe": name, "phase": phase, "epoch": epoch, "mean": _round(stat["mean"])}
                row |= {"low": _round(stat["mean"] - sd), "high": _round(stat["mean"] + sd)}
                marked = epoch % _MARK_EVERY == 0 or epoch == phases[phase][-1][0]
                rows.append(row | ({"mark": True} if marked else {}))
                tips.setdefault(epoch, {"epoch": epoch})[f"v{i}{j}"] = spread(stat)
    x = alt.X("epoch:Q", **_epochs(tips))
    y = alt.Y("mean:Q", title=title, scale=alt.Scale(zero=False))
    places = [list(styles).index(name) for name in names]
    color = alt.Color("recipe:N", title=None, scale=_scale(names, _COLORS, places))
    shape = alt.Shape("recipe:N", title=None, scale=_scale(names, _SHAPES, places))
    line = alt.Legend(symbolStrokeColor="var(--text)", symbolSize=500)
    dash = alt.StrokeDash("phase:N", title=None, scale=_scale(PHASES, _DASHES), legend=line)
    base = alt.Chart(_named(data, "rows", rows))
    titles = {f"v{i}{j}": f"{name}, {phase}" for i, name in enumerate(names) for j, phase in enumerate(PHASES)}
    layers = [
        base.mark_area(opacity=0.2).encode(
            x=x, y=alt.Y("low:Q", title=title), y2="high:Q", color=color, detail="phase:N"
        ),
        base.mark_line(strokeWidth=1.8).encode(x=x, y=y, color=color, strokeDash=dash),
        base.mark_point(filled=True, size=40, opacity=1).transform_filter("datum.mark").encode(
            x=x, y=y, color=color, shape=shape
        ),
        *_reading(data, list(tips.values()), titles),
    ]  # fmt: skip
    ends = "; ".join(
        f"{name}, {phase}: {spread(phases[phase][-1][1])} after epoch {phases[phase][-1][0]}"
        for name, phases in curves.items() for phase in PHASES if phases[phase]
    )  # fmt: skip
    heading = f"{network}: {quantity}" if network else quantity.capitalize()
    return Chart(
        id, heading, f"{title} by epoch, mean and deviation over seeds. {ends}.",
        alt.layer(*layers).properties(height=260), data,
    )  # fmt: skip


def learning_rates(rates: dict[str, list[tuple[int, float]]]) -> Chart:
    """The learning rate of each epoch, by the name of the recipes that share it."""
    data: dict[str, list[dict]] = {}
    names = list(rates)
    rows = [{"recipe": name, "epoch": epoch, "lr": lr} for name, pairs in rates.items() for epoch, lr in pairs]
    tips = {}
    for i, pairs in enumerate(rates.values()):
        for epoch, lr in pairs:
            tips.setdefault(epoch, {"epoch": epoch})[f"v{i}"] = f"{lr:.4g}"
    color = alt.Color(
        "recipe:N", title=None, scale=_scale(names, _COLORS), legend=alt.Legend(columns=1, symbolSize=500)
    )  # fmt: skip
    dash = alt.StrokeDash("recipe:N", title=None, scale=_scale(names, _DASHES))
    lines = alt.Chart(_named(data, "rows", rows)).mark_line(interpolate="step", strokeWidth=2).encode(
        x=alt.X("epoch:Q", **_epochs(tips)), y=alt.Y("lr:Q", title="Learning rate"), color=color, strokeDash=dash
    )  # fmt: skip
    layers = [lines, *_reading(data, list(tips.values()), {f"v{i}": name for i, name in enumerate(names)})]
    sentence = "; ".join(f"{name}: from {p[0][1]:.4g} to {p[-1][1]:.4g}" for name, p in rates.items())
    return Chart(
        "learning-rates", "Learning rates", f"Learning rate by epoch. {sentence}.",
        alt.layer(*layers).properties(height=220), data,
    )  # fmt: skip


def groups(analyses: dict[str, Analysis], chosen: str) -> Chart:
    """Accuracy of every class, and the mean of each group, of the chosen recipe."""
    data: dict[str, list[dict]] = {}
    dots, means = [], []
    for config, analysis in analyses.items():
        for number, stat in enumerate(analysis.by_class):
            if stat is not None:
                group = plain(analysis.group_names[analysis.group_of[number]])
                row = {"config": config, "group": group, "class": plain(analysis.class_names[number])}
                dots.append(row | {"accuracy": _round(stat["mean"]), "text": spread(stat, 1)})
        for number, stat in enumerate(analysis.by_group):
            if stat is not None:
                row = {"config": config, "group": plain(analysis.group_names[number])}
                means.append(row | {"accuracy": _round(stat["mean"]), "text": spread(stat, 1)})
    order = {}
    for row in means:
        order.setdefault(row["group"], []).append(row["accuracy"])
    # One order for all recipes, so that a group stays in its place when another is chosen.
    y = alt.Y(
        "group:N", title=None, sort=sorted(order, key=lambda group: -float(np.mean(order[group]))),
        axis=alt.Axis(labelFontSize=11),
    )  # fmt: skip
    x = alt.X("accuracy:Q", title="Test accuracy (%)", scale=alt.Scale(domain=[0, 100]))
    group_tip, value_tip = alt.Tooltip("group:N", title="group"), alt.Tooltip("text:N", title="accuracy (%)")
    chart = alt.layer(
        _only_chosen(data, "means", means).mark_tick(thickness=3, size=14, color=_COLORS[1], opacity=1).encode(
            y=y, x=x, tooltip=[group_tip, value_tip]
        ),
        _only_chosen(data, "dots", dots).mark_point(filled=True, size=45, opacity=0.7, color=_COLORS[0]).encode(
            y=y, x=x, tooltip=[alt.Tooltip("class:N", title="class"), group_tip, value_tip]
        ),
    )  # fmt: skip
    return Chart(
        "classes", "Test accuracy by class", "Test accuracy of every class (dots) and of each superclass (bars), of "
        "the recipe that is chosen; the table below has all values.",
        _with_choice(chart, chosen).properties(height=_SMALL_ROW * len(order)), data,
    )  # fmt: skip


def confusion(analyses: dict[str, Analysis], chosen: str) -> Chart:
    """Answered group by true group, percent of the row, of the chosen recipe."""
    data: dict[str, list[dict]] = {}
    rows = [
        {
            "config": config, "answer": answer, "percent": _round(value, 1), "right": plain(names[true]),
            "answered": plain(names[answer - 1]), "true": f"{true + 1} {plain(names[true])}",
        }
        for config, analysis in analyses.items() for names in [analysis.group_names]
        for true, line in enumerate(analysis.confusion)
        for answer, value in enumerate(line, 1)
        if value >= 0.05  # NaN, a row without images, is not
    ]  # fmt: skip
    order = list(dict.fromkeys(
        f"{i} {plain(name)}" for analysis in analyses.values() for i, name in enumerate(analysis.group_names, 1)
    ))  # fmt: skip
    # Named in full, since a network need not give every answer.
    numbers = list(range(1, max(len(analysis.group_names) for analysis in analyses.values()) + 1))
    columns = alt.Axis(labelAngle=0, labelOverlap=True, labelFontSize=10, grid=False)
    # The chart's colour shines through less where the share is small; the root makes rare confusions visible.
    opacity = alt.FillOpacity(
        "percent:Q", title=None, legend=None, scale=alt.Scale(type="sqrt", domain=[0, 100], range=[0, 1])
    )
    chart = _only_chosen(data, "rows", rows).mark_rect(fill=_COLORS[0], stroke="var(--line)", strokeWidth=0.5).encode(
        x=alt.X("answer:O", title="Answered, by number", axis=columns, scale=alt.Scale(domain=numbers)),
        y=alt.Y(
            "true:N", title="True", axis=alt.Axis(grid=False, labelFontSize=11), scale=alt.Scale(domain=order)
        ),
        fillOpacity=opacity,
        tooltip=[
            alt.Tooltip("right:N", title="true"), alt.Tooltip("answered:N"),
            alt.Tooltip("percent:Q", title="% of the true ones", format=".1f"),
        ],
    )  # fmt: skip
    return Chart(
        "confusion", "Confusion by superclass", "How the images of each superclass are answered, in percent, of the "
        "recipe that is chosen; the tables below have all values.",
        _with_choice(chart, chosen).properties(height=_SMALL_ROW * len(order)), data,
    )  # fmt: skip


def calibration(analyses: dict[str, Analysis], chosen: str) -> Chart:
    """Accuracy by confidence, and how many answers have it, of the chosen recipe."""
    data: dict[str, list[dict]] = {}
    rows = []
    for config, analysis in analyses.items():
        result = analysis.calibration
        bins, total = len(result.count), int(result.count.sum())
        for number, count in enumerate(result.count.tolist()):
            if count:
                rows.append({
                    "config": config, "low": _round(100 * number / bins), "high": _round(100 * (number + 1) / bins),
                    "confidence": _round(result.confidence[number]), "accuracy": _round(result.accuracy[number]),
                    "share": _round(100 * count / total),
                })  # fmt: skip
    percent = alt.Scale(domain=[0, 100])
    x_axis = {"title": "Confidence (%)", "scale": percent}
    y_axis = {"title": "Accuracy; share of answers (%)", "scale": percent}
    x, y = alt.X("confidence:Q", **x_axis), alt.Y("accuracy:Q", **y_axis)
    tooltip = [
        alt.Tooltip("confidence:Q", title="confidence (%)", format=".1f"),
        alt.Tooltip("accuracy:Q", title="accuracy (%)", format=".1f"),
        alt.Tooltip("share:Q", title="share of answers (%)", format=".1f"),
    ]
    base = _only_chosen(data, "rows", rows)
    diagonal = alt.Chart(_named(data, "diagonal", [{"confidence": v, "accuracy": v} for v in (0, 100)]))
    chart = alt.layer(
        base.mark_rect(color="var(--dim)", opacity=0.3).encode(
            x=alt.X("low:Q", **x_axis), x2="high:Q", y=alt.Y("zero:Q", **y_axis), y2="share:Q", tooltip=tooltip,
        ).transform_calculate(zero="0"),
        diagonal.mark_line(color="var(--dim)", strokeDash=[4, 4]).encode(x=x, y=y),
        base.mark_line(color=_COLORS[0], strokeWidth=2).encode(x=x, y=y),
        base.mark_point(color=_COLORS[0], filled=True, size=60, opacity=1).encode(x=x, y=y, tooltip=tooltip),
    )  # fmt: skip
    return Chart(
        "calibration", "Calibration", "Accuracy by confidence of the recipe that is chosen, beside the dashed line of "
        "perfect calibration, and the share of answers in each bin; the table below has all values.",
        _with_choice(chart, chosen).properties(height=280), data,
    )  # fmt: skip


def _named(data: dict[str, list[dict]], name: str, rows: list[dict]) -> alt.NamedData:
    """Puts rows into a chart's data, and gives the reference to them.

    Altair would check and copy every row of data inside a chart again and again.
    """
    data[name] = rows
    return alt.NamedData(name=name)


def _scale(names: Sequence[str], values: Sequence, places: Sequence[int] | None = None) -> alt.Scale:
    """For each name the value at its place, in order unless given, and from the start again."""
    places = range(len(names)) if places is None else places
    return alt.Scale(domain=list(names), range=[values[place % len(values)] for place in places])


def _epochs(epochs: Iterable[int]) -> dict:
    """An axis from the first to the last epoch, with whole numbers."""
    first, last = min(epochs), max(epochs)
    room = 0 if first < last else 0.5
    scale = alt.Scale(domain=[first - room, last + room], nice=False, zero=False)
    # Vega puts ticks between whole numbers where there are few of them.
    every = {"values": list(range(first, last + 1))} if last - first < 10 else {}
    return {"title": "Epoch", "axis": alt.Axis(tickMinStep=1, format="d", **every), "scale": scale}


def _reading(data: dict[str, list[dict]], rows: list[dict], titles: dict[str, str]) -> list[alt.Chart]:
    """Two layers: a line at the epoch that is pointed at, and what shows its values, wherever in its column that is.

    Not Vega-Lite's `nearest`, whose tooltips know numbers only.
    """
    pointed = alt.selection_point(name="pointed", fields=["epoch"], on="pointerover", clear="pointerout", empty=False)
    axis = _epochs([row["epoch"] for row in rows])
    columns = [row | {"left": row["epoch"] - 0.5, "right": row["epoch"] + 0.5} for row in rows]
    base = alt.Chart(_named(data, "columns", columns))
    tooltip = [alt.Tooltip("epoch:Q", title="epoch")]
    tooltip += [alt.Tooltip(f"{key}:N", title=title) for key, title in titles.items()]
    return [
        base.mark_rule(color="var(--dim)").encode(
            x=alt.X("epoch:Q", **axis), opacity=alt.condition(pointed, alt.value(1), alt.value(0))
        ),
        base.mark_rect(opacity=0, clip=True)
        .encode(x=alt.X("left:Q", **axis), x2="right:Q", tooltip=tooltip)
        .add_params(pointed),
    ]


def _only_chosen(data: dict[str, list[dict]], name: str, rows: list[dict]) -> alt.Chart:
    return alt.Chart(_named(data, name, rows)).transform_filter(f"datum.config == {CHOSEN}")


def _with_choice(chart: alt.TopLevelMixin, chosen: str) -> alt.TopLevelMixin:
    return chart.add_params(alt.param(name=CHOSEN, value=chosen))


def _round(value: float, digits: int = 3) -> float:
    return round(float(value), digits)


def _or_none(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"
