"""What a network's answers on the test set come to: accuracy by class, confusion, calibration, mistakes. NumPy only."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Answers that are kept of each image, most probable first; enough for top-5 accuracy.
TOP = 5
# Guo et al.'s number.
BINS = 15


class Predictions(NamedTuple):
    """What a network says of the test images.

    epoch: after which it says so, numbered from 1.
    labels: the right class of each image, int `[n]`.
    classes: the most probable classes, best first, int `[n, top]`.
    probabilities: theirs, float `[n, top]`.
    label_probabilities: that of the right class, float `[n]`.
    """

    epoch: int
    labels: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray
    label_probabilities: np.ndarray


class Calibration(NamedTuple):
    """Images by the confidence of their answer, in bins of equal width from 0 to 1; empty bins hold NaN.

    count: images of each bin, int `[bins]`.
    confidence: their mean confidence, percent, float `[bins]`.
    accuracy: how many of them are right, percent, float `[bins]`.
    """

    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


class Mistake(NamedTuple):
    """A wrong answer that one or several of a recipe's runs give to one image.

    image: its place in the test set.
    confidence: mean over those runs, from 0 to 1.
    runs: how many they are.
    """

    image: int
    label: int
    predicted: int
    confidence: float
    runs: int


def from_probabilities(epoch: int, labels: np.ndarray, probabilities: np.ndarray) -> Predictions:
    """Keeps the `TOP` most probable classes of `probabilities` `[n, classes]`; of equals, the lower class first."""
    # Stable on the negated values: the same answer as argmax, which takes the first of equals.
    classes = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP]
    rows = np.arange(len(labels))
    return Predictions(
        epoch=epoch,
        labels=labels,
        classes=classes,
        probabilities=np.take_along_axis(probabilities, classes, axis=1),
        label_probabilities=probabilities[rows, labels],
    )


def accuracy(predictions: Predictions, *, top: int = 1) -> float:
    """Percent of the images whose class is among the `top` most probable."""
    hits = (predictions.classes[:, :top] == predictions.labels[:, None]).any(axis=1)
    return 100.0 * float(hits.mean())


def class_accuracy(predictions: Predictions, num_classes: int) -> np.ndarray:
    """Percent of each class's images that are answered right, float `[classes]`; NaN for a class without images."""
    right = predictions.classes[:, 0] == predictions.labels
    hits = np.bincount(predictions.labels, weights=right, minlength=num_classes)
    return _percent(hits, np.bincount(predictions.labels, minlength=num_classes))


def confusion(predictions: Predictions, group_of: np.ndarray, num_groups: int) -> np.ndarray:
    """How the images of each group of classes are answered, percent of the row, float `[true group, answered group]`.

    `group_of` is the group of each class, int `[classes]`, such as CIFAR-100's superclasses. Rows of groups without
    images hold NaN.
    """
    cells = group_of[predictions.labels] * num_groups + group_of[predictions.classes[:, 0]]
    counts = np.bincount(cells, minlength=num_groups**2).reshape(num_groups, num_groups)
    return _percent(counts, counts.sum(axis=1, keepdims=True))


def calibration(predictions: Predictions, bins: int = BINS) -> Calibration:
    """Accuracy by confidence, the probability of the answer that is given.

    A bin takes the confidences above its lower bound and up to its upper one.

    Source: Guo et al., On Calibration of Modern Neural Networks, 2017.
    """
    confidence = predictions.probabilities[:, 0].astype(np.float64)
    right = predictions.classes[:, 0] == predictions.labels
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    return Calibration(
        count=count,
        confidence=_percent(np.bincount(place, weights=confidence, minlength=bins), count),
        accuracy=_percent(np.bincount(place, weights=right, minlength=bins), count),
    )


def expected_calibration_error(result: Calibration) -> float:
    """Mean distance of accuracy from confidence over the images, in points of percent.

    Source: Guo et al., 2017, equation 3.
    """
    gaps = np.nan_to_num(np.abs(result.accuracy - result.confidence))
    return float((gaps * result.count).sum() / result.count.sum())


def pool(calibrations: Sequence[Calibration]) -> Calibration:
    """The bins of several runs together: each image counts once for each run."""
    count = sum(result.count for result in calibrations)
    sums = [
        sum(np.nan_to_num(getattr(result, name)) * result.count for result in calibrations)
        for name in ("confidence", "accuracy")
    ]
    return Calibration(count, *(_percent(total / 100, count) for total in sums))


def confident_mistakes(runs: Sequence[Predictions], count: int) -> list[Mistake]:
    """The wrong answers with the highest mean confidence over all runs, where a run that answers otherwise counts 0.

    An image appears once, with the answer that ranks highest.
    """
    labels, answers = runs[0].labels, np.stack([run.classes[:, 0] for run in runs])
    confidences = np.stack([run.probabilities[:, 0] for run in runs]).astype(np.float64)
    run, image = np.nonzero(answers != labels)
    span = max(int(answers.max()), int(labels.max())) + 1
    keys, place = np.unique(image * span + answers[run, image], return_inverse=True)
    sums = np.bincount(place, weights=confidences[run, image])
    counts = np.bincount(place)
    mistakes, seen = [], set()
    for best in np.lexsort((keys, -sums)):
        number, answer = divmod(int(keys[best]), span)
        if len(mistakes) < count and number not in seen:
            seen.add(number)
            mistakes.append(
                Mistake(number, int(labels[number]), answer, float(sums[best] / counts[best]), int(counts[best]))
            )
    return mistakes


def _percent(parts: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole > 0, 100.0 * parts / whole, np.nan)
