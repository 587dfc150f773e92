"""Summaries of answers against counting by hand."""

import collections

import numpy as np
import pytest
import report_example

from cifar_jax.studies.table.report import summaries
from cifar_jax.studies.table.report.analysis import analyse
from cifar_jax.studies.table.report.summaries import Predictions


@pytest.fixture(scope="module")
def data():
    return report_example.dataset()


@pytest.fixture(scope="module")
def runs(data):
    return [report_example.answers(data, seed) for seed in range(3)]


def loop(run):
    """The answers of a run one by one: label, answer, confidence."""
    return zip(run.labels.tolist(), run.classes[:, 0].tolist(), run.probabilities[:, 0].tolist(), strict=True)


def test_the_most_probable_classes_come_first_and_ties_go_to_the_lower(torch):
    probabilities = np.random.default_rng(0).dirichlet(np.ones(20), 200).astype(np.float32)
    labels = np.arange(200) % 20
    run = summaries.from_probabilities(7, labels, probabilities)
    values, classes = torch.topk(torch.from_numpy(probabilities), 5)
    np.testing.assert_array_equal(run.classes, classes)
    np.testing.assert_array_equal(run.probabilities, values)
    np.testing.assert_array_equal(run.label_probabilities, probabilities[np.arange(200), labels])
    assert run.epoch == 7
    tied = summaries.from_probabilities(1, np.array([0]), np.full((1, 4), 0.25, np.float32))
    assert tied.classes.tolist() == [[0, 1, 2, 3]]


def test_accuracy_by_class_and_in_total(runs):
    for run in runs:
        hits, images = collections.Counter(), collections.Counter()
        for label, answer, _ in loop(run):
            images[label] += 1
            hits[label] += label == answer
        expected = [100 * hits[number] / images[number] for number in range(100)]
        np.testing.assert_allclose(summaries.class_accuracy(run, 100), expected)
        assert summaries.accuracy(run) == pytest.approx(100 * hits.total() / images.total())
        top5 = sum(label in row for label, row in zip(run.labels, run.classes, strict=True))
        assert summaries.accuracy(run, top=5) == pytest.approx(100 * top5 / len(run.labels))
    assert np.isnan(summaries.class_accuracy(runs[0], 101)[100])


def test_confusion_counts_rows_of_true_groups(runs):
    group_of = np.arange(100) // 5
    counts = collections.Counter((label // 5, answer // 5) for label, answer, _ in loop(runs[0]))
    matrix = summaries.confusion(runs[0], group_of, 20)
    for true in range(20):
        images = sum(counts[true, answer] for answer in range(20))
        np.testing.assert_allclose(matrix[true], [100 * counts[true, answer] / images for answer in range(20)])
    assert matrix[0, 3] != matrix[3, 0]  # or a transposed matrix would pass for one of symmetric confusions
    assert np.isnan(summaries.confusion(runs[0], group_of, 21)[20]).all()


def test_calibration_error_is_the_mean_gap_of_the_bins(runs):
    for run in runs:
        bins = collections.defaultdict(list)
        for label, answer, confidence in loop(run):
            # (0, 1/15], (1/15, 2/15], ...
            bins[next(i for i in range(15) if confidence <= (i + 1) / 15 + 1e-12)].append((confidence, label == answer))
        gap = sum(
            abs(sum(c for c, _ in each) - sum(right for _, right in each)) for each in bins.values()
        ) / len(run.labels)  # fmt: skip
        result = summaries.calibration(run)
        assert summaries.expected_calibration_error(result) == pytest.approx(100 * gap)
        assert {i: int(count) for i, count in enumerate(result.count) if count} == {i: len(v) for i, v in bins.items()}


def test_a_bin_takes_its_upper_bound_and_certainty_has_a_bin():
    probabilities = np.array([[0.2, 0], [0.2000001, 0], [1.0, 0]], np.float64)
    run = Predictions(1, np.zeros(3, int), np.array([[0, 1]] * 3), probabilities, probabilities[:, 0])
    assert summaries.calibration(run, bins=5).count.tolist() == [1, 1, 0, 0, 1]


def test_answers_as_probable_as_they_are_right_have_no_calibration_error():
    confidence = np.repeat([0.25, 0.75], 400)
    right = np.concatenate([np.arange(400) < 100, np.arange(400) < 300])
    classes = np.stack([np.where(right, 0, 1), np.where(right, 1, 0)], axis=1)
    run = Predictions(1, np.zeros(800, int), classes, np.stack([confidence, 1 - confidence], 1), confidence)
    assert summaries.expected_calibration_error(summaries.calibration(run)) == pytest.approx(0, abs=1e-12)


def test_pooled_bins_are_those_of_all_answers_in_one_run(runs):
    together = Predictions(30, *(np.concatenate(parts) for parts in zip(*(run[1:] for run in runs), strict=True)))
    pooled = summaries.pool([summaries.calibration(run) for run in runs])
    for mine, expected in zip(pooled, summaries.calibration(together), strict=True):
        np.testing.assert_allclose(mine, expected)


def test_confident_mistakes_rank_by_the_mean_over_all_runs(runs):
    sums, numbers = collections.Counter(), collections.Counter()
    for run in runs:
        for image, (label, answer, confidence) in enumerate(loop(run)):
            if answer != label:
                sums[image, answer] += confidence
                numbers[image, answer] += 1
    best = {}
    for (image, answer), total in sums.items():
        if total > best.get(image, (0, 0))[0]:
            best[image] = (total, answer)
    expected = sorted(best.items(), key=lambda item: -item[1][0])[:12]
    mistakes = summaries.confident_mistakes(runs, 12)
    assert [(each.image, each.predicted) for each in mistakes] == [(image, pair[1]) for image, pair in expected]
    for each in mistakes:
        assert each.runs == numbers[each.image, each.predicted]
        assert each.confidence == pytest.approx(sums[each.image, each.predicted] / each.runs)
        assert each.label == runs[0].labels[each.image]
    assert {each.runs for each in mistakes} >= {1, 2}  # or the ranking is not tried


def test_an_analysis_is_mean_and_deviation_over_runs(runs, data):
    analysis = analyse(runs, data)
    each = [summaries.class_accuracy(run, 100) for run in runs]
    assert analysis.top1["mean"] == pytest.approx(np.mean([summaries.accuracy(run) for run in runs]))
    assert analysis.by_class[3]["sd"] == pytest.approx(np.std([row[3] for row in each], ddof=1))
    superclass = [row[5:10].mean() for row in each]
    assert analysis.by_group[1]["mean"] == pytest.approx(np.mean(superclass))
    assert analysis.by_group[1]["sd"] == pytest.approx(np.std(superclass, ddof=1))
    np.testing.assert_allclose(analysis.confusion.sum(axis=1), 100)
    assert (analysis.runs, analysis.images) == (3, 1000)


def test_a_set_without_superclasses_is_confused_by_class(runs, data):
    analysis = analyse(runs, data._replace(superclass_names=(), superclass_of=()))
    assert analysis.group_names == data.class_names
    assert analysis.confusion.shape == (100, 100)


def test_classes_without_test_images_are_not_measured(data):
    few = data._replace(test=data.test._replace(images=data.test.images[:97], labels=data.test.labels[:97]))
    analysis = analyse([report_example.answers(few, 0)], few)
    assert analysis.by_class[96] is not None
    assert analysis.by_class[97:] == [None] * 3
    # The mean of the superclass's classes that have images.
    expected = np.mean([analysis.by_class[number]["mean"] for number in (95, 96)])
    assert analysis.by_group[19]["mean"] == pytest.approx(expected)
