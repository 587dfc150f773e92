"""Writes the report of a table: the page, and PNG pictures of its charts."""

import base64
import functools
import importlib.util
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cifar_jax.data import load_dataset
from cifar_jax.data.dataset import Dataset, take
from cifar_jax.errors import InputError
from cifar_jax.files import write_whole
from cifar_jax.runs.workdir import read_config
from cifar_jax.studies.table.report.analysis import Analysis, analyse
from cifar_jax.studies.table.report.predictions import run_predictions
from cifar_jax.studies.table.report.recipes import recipes

FIGURES = "figures"


def write_report(table: dict, workdir: Path, out: Path, *, pictures: bool = False) -> None:
    """Writes the page to `out`, and its charts as PNG into the folder `figures` beside it.

    What finished runs answer on the test set is worked out where their folders do not have it yet. A run for which
    that fails is named on the page, and left out of what needs it.

    Args:
      table: as `cifar_jax.studies.table.document` describes `table.json`.
      workdir: the folder that the runs' folders are relative to.
      out: an HTML file; its folder is made if need be.
      pictures: whether test images are shown. A page with them must not be published: CIFAR's pictures come without
        a licence to pass them on.

    Raises:
      InputError: the libraries that draw are not installed; the answers are kept.
    """
    # Before the libraries are asked for: a machine that only trains leaves the answers to one that draws.
    analyses, datasets, problems = _analyses(table, workdir)
    require_libraries()
    from cifar_jax.studies.table.report import drawing

    text, drawn = make_page(table, analyses, problems, _pictures(analyses, datasets) if pictures else None)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, text)
    folder = out.parent / FIGURES
    folder.mkdir(exist_ok=True)
    for chart in drawn:
        write_whole(folder / f"{chart.id}.png", drawing.png(chart))
    print(f"Report: {out} ({out.stat().st_size / 1e6:.1f} MB), PNG figures in {folder}", flush=True)


def make_page(
    table: dict,
    analyses: dict[str, Analysis],
    problems: Sequence[str],
    pictures: Mapping[tuple[str, int], str] | None,
) -> tuple[str, list]:
    """The page's HTML, and its charts (`drawing.Chart`); arguments as `sections.sections` takes them."""
    from cifar_jax.studies.table.report import page, sections

    named = recipes(table)
    parts = sections.sections(table, named, analyses, problems=problems, pictures=pictures)
    text = page.render(
        parts,
        summary=sections.summary(table, named),
        titles={recipe.config: recipe.title for recipe in named if recipe.config in analyses},
        chosen=sections.best_config(analyses) if analyses else None,
    )
    return text, [chart for part in parts for chart in part.charts]


def require_libraries() -> None:
    """Makes sure that the libraries that draw the report are there.

    Raises:
      InputError: one is missing.
    """
    missing = [name for name in ("altair", "vl_convert") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"The report needs Altair and vl-convert, got no {' and no '.join(missing)}: pip install '.[report]'."
        )


def _analyses(table: dict, workdir: Path) -> tuple[dict[str, Analysis], dict[str, Dataset], list[str]]:
    """By config, those of its finished runs; by name, the data sets that they are about; what went wrong."""
    analyses, datasets, problems = {}, {}, []
    for config in table["cells"]:
        predictions = []
        for run in table["runs"]:
            if run["config"] == config and not run["holdout"] and run["status"] == "done":
                folder = workdir / run["folder"]
                try:
                    predictions.append(run_predictions(folder, run["epochs"]))
                    dataset = _dataset(folder)
                except InputError as error:
                    problems.append(f"{run['folder']}: no answers on the test set. {error}")
        if predictions:
            datasets[dataset.name] = dataset
            analyses[config] = analyse(predictions, dataset)
    return analyses, datasets, problems


def _dataset(folder: Path) -> Dataset:
    data = read_config(folder).data
    return _load(data.name, data.dir, data.limit_test)


@functools.cache
def _load(name: str, folder: str, limit_test: int) -> Dataset:
    return take(load_dataset(name, folder), 0, limit_test)


def _pictures(analyses: dict[str, Analysis], datasets: dict[str, Dataset]) -> dict[tuple[str, int], str]:
    """Addresses that hold the pictures of all mistakes, by data set and number."""
    wanted = {(each.dataset, mistake.image) for each in analyses.values() for mistake in each.mistakes}
    return {(name, image): data_address(datasets[name].test.images[image]) for name, image in sorted(wanted)}


def data_address(image: np.ndarray) -> str:
    """A picture, uint8 `[height, width, 3]`, as an address that holds it."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
