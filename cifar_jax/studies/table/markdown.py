"""The table in Markdown: whole for `table.md` and docs/table.md, and short for the README.

python -m cifar_jax fill docs/table.md    # from results/table.json
"""

import json
from collections.abc import Sequence
from pathlib import Path

from cifar_jax.runs.progress import duration
from cifar_jax.studies.table.cells import SPREAD, best
from cifar_jax.studies.table.document import document
from cifar_jax.studies.table.lecture import EPOCHS, LECTURE

_HEADS = (
    "network", "recipe", "lecture", "maximum", "difference", f"within {SPREAD} sd", "final epoch", "chosen on held-out",
    "epoch of maximum", "epochs", "runs", "time of a run",
)  # fmt: skip
_SHORT_HEADS = ("network", "recipe", "lecture", "maximum", "final epoch", "epochs", "runs")
_RULES = ("torch", "flax", "lecture")


def markdown(table: dict) -> str:
    """Two tables, what their columns mean, which runs are missing, and where the figures come from.

    Args:
      table: as `cifar_jax.studies.table.document` has it; `None` in it becomes an empty cell.
    """
    parts = [_table(_HEADS, _main_rows(table["cells"]))]
    measured = [cell for cell in table["cells"].values() if cell["runs"]]
    if measured:
        parts.append(_explanation(table))
    compared = {name: cell for name, cell in table["cells"].items() if len(cell["rules"]) > 1}
    if compared:
        parts += [_rules_text(), _rules_table(table, compared)]
    if missing := _missing(table["runs"]):
        parts.append("Not in the table:\n\n" + "\n".join(f"- {line}" for line in missing))
    if table["origins"]:
        parts.append(_origin(table))
    return "\n\n".join(parts)


def short_markdown(table: dict) -> str:
    """The lecture's table with the columns that a README needs, and where the figures come from."""
    cells = table["cells"]
    rows = [[row[_HEADS.index(head)] for head in _SHORT_HEADS] for row in _main_rows(cells)]
    parts = [_table(_SHORT_HEADS, rows)]
    if any(cell["runs"] for cell in cells.values()):
        parts.append(
            "Test accuracy in percent: the mean over runs ± their standard deviation. *Maximum* is the highest of all "
            "epochs, picked on the test set, as the lecture reports it (with its epoch in brackets)."
        )
    if table["origins"]:
        parts.append(_origin(table))
    return "\n\n".join(parts)


def recorded(folder: Path) -> dict:
    """`folder/table.json`; a table without runs where there is none."""
    path = folder / "table.json"
    return json.loads(path.read_text()) if path.exists() else document([], [], origins=[], settings={})


def _main_rows(cells: dict[str, dict]) -> list[list[str]]:
    # A table of other configs alone is none of the lecture's.
    names = list(LECTURE) if not cells or set(cells) & set(LECTURE) else []
    names += [name for name in cells if name not in LECTURE]
    return [_main_row(name, cells.get(name)) for name in names]


def _main_row(name: str, cell: dict | None) -> list[str]:
    lecture = f"{LECTURE[name].accuracy:.2f} ({LECTURE[name].epoch})" if name in LECTURE else ""
    head = [*_names(name), lecture]
    if not cell or not cell["runs"]:
        held_out = _statistic(cell["at_best_holdout"]) if cell else ""
        return [*head, "", "", "", "", held_out, "", "", "", ""]
    companions = cell["at_best_holdout"]["n"] if cell["at_best_holdout"] else 0
    runs = str(cell["runs"]) if companions in (0, cell["runs"]) else f"{cell['runs']} (held-out: {companions})"
    return [
        *head,
        _statistic(cell["maximum"]),
        "" if cell["difference"] is None else f"{cell['difference']:+.2f}",
        {None: "", True: "yes", False: "no"}[cell["within_spread"]],
        _statistic(cell["final"]),
        _statistic(cell["at_best_holdout"]),
        _statistic(cell["maximum_epoch"], digits=1),
        str(cell["epochs"]),
        runs,
        duration(cell["seconds"]["mean"]),
    ]


def _names(name: str) -> tuple[str, str]:
    return (LECTURE[name].network, LECTURE[name].recipe) if name in LECTURE else (name, "")


def _explanation(table: dict) -> str:
    settings = table["settings"]
    lines = [
        "Test accuracy in percent: the mean over seeds ± their sample deviation. *Maximum* is the lecture's measure, "
        "the highest of all epochs: it is picked on the test set, which flatters it. *Final epoch* picks nothing.",
    ]
    if settings["holdout"]:
        lines.append(
            f"*Chosen on held-out* is the test accuracy of the epoch that was best on {settings['holdout']:,} training "
            "images that these runs, of their own, did not train on."
        )
    lines.append(
        f"*Difference* and *within {SPREAD} sd* hold the lecture's one run against the maximum; they are left empty "
        f"for runs of other than {EPOCHS} epochs or of fewer images, and the latter for a single run."
    )
    return " ".join(lines)


def _rules_text() -> str:
    return (
        "The same runs, evaluated with BatchNorm's running averages kept by each of the three rules (training does not "
        "depend on them). The last two columns are what the lecture's `momentum = 0.1`, which forgets all but the last "
        "batch or two, costs against torch's rule: points of test accuracy, seed by seed."
    )


def _rules_table(table: dict, cells: dict[str, dict]) -> str:
    heads = ["network", "recipe"]
    heads += [f"{rule}: {measure}" for rule in _RULES for measure in ("maximum", "final")]
    heads += ["cost: maximum", "cost: final"]
    rows = []
    for name, cell in cells.items():
        row = list(_names(name))
        for rule in _RULES:
            row += [_statistic(cell["rules"].get(rule, {}).get(measure)) for measure in ("maximum", "final")]
        rows.append(row + [_statistic(cell["lecture_rule_cost"][measure]) for measure in ("maximum", "final")])
    return _table(heads, rows)


def _missing(runs: Sequence[dict]) -> list[str]:
    lines, untouched = [], 0
    for run in runs:
        if run["status"] == "done":
            continue
        if run["status"] == "unfinished" and not run["history"]:
            untouched += 1
            continue
        companion = f", {run['holdout']:,} held out" if run["holdout"] else ""
        line = f"{run['config']}, seed {run['seed']}{companion}: {run['epochs_done']} of {run['epochs']} epochs"
        if run["history"]:
            row = best(run["history"], "test_accuracy")
            line += f", at most {row['test_accuracy']:.2f} (epoch {row['epoch']}) so far"
        if run["status"] == "failed":
            line += f"; failed: {' '.join(run['message'].split())}"
        lines.append(line)
    if untouched:
        lines.append(f"{untouched} {'run' if untouched == 1 else 'runs'} not started")
    return lines


def _origin(table: dict) -> str:
    hardware = list(dict.fromkeys(_hardware(origin["hardware"]) for origin in table["origins"]))
    commits = list(dict.fromkeys(_short(origin["commit"]) for origin in table["origins"]))
    return f"`{table['command']}`, commit {', '.join(commits)}, on {'; '.join(hardware)}."


def _short(commit: str | None) -> str:
    digits, plus, changes = str(commit).partition("+")
    return digits[:12] + plus + changes


def _hardware(hardware: dict) -> str:
    devices = hardware["devices"]
    if devices[0] == "cpu":
        return f"{hardware['cores']} CPU cores ({hardware['processor']})"
    return f"{len(devices)} x {devices[0]}"


def _statistic(value: dict | None, digits: int = 2) -> str:
    if value is None:
        return ""
    spread = "" if value["sd"] is None else f" ± {value['sd']:.{digits}f}"
    return f"{value['mean']:.{digits}f}{spread}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(line) + " |" for line in (heads, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(heads), *lines[1:]])
