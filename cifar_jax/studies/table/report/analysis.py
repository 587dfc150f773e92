"""What the runs of one recipe answer on the test set, taken together: mean and deviation over its seeds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cifar_jax.data.dataset import Dataset
from cifar_jax.studies.table.cells import statistic
from cifar_jax.studies.table.report import summaries
from cifar_jax.studies.table.report.summaries import Calibration, Mistake, Predictions

MISTAKES = 12


class Analysis(NamedTuple):
    """Of one recipe; statistics are those of `cifar_jax.studies.table.cells.statistic`, in percent.

    dataset: the name of the data set.
    runs: how many runs it is made from.
    images: how many test images each answered.
    class_names, group_names: groups are the superclasses, or the classes themselves where the set has none.
    group_of: the group of each class, int `[classes]`.
    top1, top5: accuracy.
    calibration_error: expected calibration error.
    by_class: accuracy of each class; None for one without test images.
    by_group: mean accuracy of each group's classes; None likewise.
    confusion: mean over runs, percent of the row, float `[true group, answered group]`; NaN rows likewise.
    calibration: of all runs' answers.
    """

    dataset: str
    runs: int
    images: int
    class_names: tuple[str, ...]
    group_names: tuple[str, ...]
    group_of: np.ndarray
    top1: dict
    top5: dict
    calibration_error: dict
    by_class: list[dict | None]
    by_group: list[dict | None]
    confusion: np.ndarray
    calibration: Calibration
    mistakes: list[Mistake]


def analyse(runs: Sequence[Predictions], dataset: Dataset) -> Analysis:
    """The analysis of one recipe's runs, at least one, on the test images of `dataset`."""
    classes = len(dataset.class_names)
    group_names = dataset.superclass_names or dataset.class_names
    group_of = np.array(dataset.superclass_of or range(classes))
    by_class = np.stack([summaries.class_accuracy(run, classes) for run in runs])
    calibrations = [summaries.calibration(run) for run in runs]
    return Analysis(
        dataset=dataset.name,
        runs=len(runs),
        images=len(runs[0].labels),
        class_names=dataset.class_names,
        group_names=group_names,
        group_of=group_of,
        top1=statistic(summaries.accuracy(run) for run in runs),
        top5=statistic(summaries.accuracy(run, top=5) for run in runs),
        calibration_error=statistic(summaries.expected_calibration_error(each) for each in calibrations),
        by_class=_measured(by_class),
        by_group=_measured(np.stack([_group_means(row, group_of, len(group_names)) for row in by_class])),
        confusion=np.mean([summaries.confusion(run, group_of, len(group_names)) for run in runs], axis=0),
        calibration=summaries.pool(calibrations),
        mistakes=summaries.confident_mistakes(runs, MISTAKES),
    )


def _group_means(values: np.ndarray, group_of: np.ndarray, groups: int) -> np.ndarray:
    """Mean over the classes of each group that have images."""
    known = ~np.isnan(values)
    sums = np.bincount(group_of, weights=np.nan_to_num(values), minlength=groups)
    counts = np.bincount(group_of, weights=known, minlength=groups)
    with np.errstate(invalid="ignore"):
        return sums / counts


def _measured(values: np.ndarray) -> list[dict | None]:
    """The statistic of each column of `[runs, columns]`."""
    return [None if np.isnan(column).any() else statistic(column.tolist()) for column in values.T]
