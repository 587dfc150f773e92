"""Numbers of the table against NumPy, and what must stay empty."""

import numpy as np
import pytest
import table_example

from cifar_jax.studies.table.cells import best, cell, statistic
from cifar_jax.studies.table.lecture import LECTURE

RULE = {"rule": "torch", "epochs": 30, "all_images": True}


def flat(seed, accuracies, holdout=0, status="done", **more):
    """A run with these test accuracies."""
    history = [
        {"epoch": i, "test_accuracy": accuracy, "seconds": 2.0, **{key: values[i - 1] for key, values in more.items()}}
        for i, accuracy in enumerate(accuracies, 1)
    ]
    return {"config": "cnn6_adam", "seed": seed, "holdout": holdout, "status": status, "history": history}


def test_statistic_against_numpy(rng):
    values = rng.normal(60, 1, 7).tolist()
    result = statistic(values)
    assert result["mean"] == pytest.approx(np.mean(values), rel=1e-14)  # double precision
    assert result["sd"] == pytest.approx(np.std(values, ddof=1), rel=1e-12)
    assert (result["n"], result["values"]) == (7, values)
    assert statistic([]) is None
    assert statistic([3.0])["sd"] is None


def test_the_maximum_is_the_first_of_equals():
    assert best([{"e": 1, "a": 2.0}, {"e": 2, "a": 5.0}, {"e": 3, "a": 5.0}], "a")["e"] == 2


def test_a_cell_of_three_seeds():
    runs = [flat(0, [10.0, 62.0, 61.0]), flat(1, [10.0, 20.0, 60.0]), flat(2, [64.0, 63.0, 62.0])]
    result = cell("cnn6_adam", runs, **RULE)
    assert result["maximum"]["values"] == [62.0, 60.0, 64.0]
    assert result["final"]["values"] == [61.0, 60.0, 62.0]
    assert result["maximum_epoch"]["values"] == [2, 3, 1]
    assert result["seconds"]["mean"] == 6.0
    assert (result["lecture"], result["lecture_epoch"], result["runs"]) == (61.89, 27, 3)
    assert result["difference"] == pytest.approx(62.0 - 61.89, abs=1e-12)
    assert result["within_spread"] is True


def test_the_epoch_is_chosen_on_the_held_out_images():
    """Of the companions alone, and not by the test accuracy."""
    companion = flat(0, [50.0, 60.0, 55.0], holdout=5000, holdout_accuracy=[40.0, 41.0, 48.0])
    result = cell("cnn6_adam", [flat(0, [70.0] * 3), companion], **RULE)
    assert result["at_best_holdout"]["values"] == [55.0]
    assert (result["runs"], result["maximum"]["values"]) == (1, [70.0])


@pytest.mark.parametrize(("sd", "within"), [(0.5, True), (0.499, False)])
def test_within_two_deviations(sd, within):
    """Two runs at the mean plus and minus sd / sqrt(2) have this deviation; the lecture lies one point away."""
    mean, step = LECTURE["cnn6_adam"].accuracy + 1, (sd + 1e-9) / np.sqrt(2)
    result = cell("cnn6_adam", [flat(0, [mean - step]), flat(1, [mean + step])], **RULE)
    assert result["difference"] == pytest.approx(1)
    assert result["within_spread"] is within


def test_what_was_not_measured_is_none():
    empty = cell("cnn6_adam", [flat(0, [60.0], status="unfinished"), flat(1, [61.0], status="failed")], **RULE)
    assert empty["runs"] == 0
    assert empty["lecture_rule_cost"] == {"maximum": None, "final": None}
    for key in ("maximum", "final", "maximum_epoch", "at_best_holdout", "seconds", "difference", "within_spread"):
        assert empty[key] is None, key
    single = cell("cnn6_adam", [flat(0, [60.0])], **RULE)
    assert single["difference"] is not None
    assert single["within_spread"] is None
    other = cell("quickstart", [flat(0, [60.0])], **RULE)
    assert (other["lecture"], other["network"], other["difference"]) == (None, None, None)


@pytest.mark.parametrize("changed", [{"epochs": 29}, {"all_images": False}])
def test_the_lectures_figure_is_compared_with_its_like_alone(changed):
    result = cell("cnn6_adam", [flat(0, [60.0]), flat(1, [61.0])], **{**RULE, **changed})
    assert result["maximum"] is not None
    assert result["lecture"] == 61.89
    assert (result["difference"], result["within_spread"]) == (None, None)


def test_the_rules_side_by_side():
    """Each rule has a maximum of its own; the cost is a mean of differences of the same runs."""
    runs = [
        flat(0, [60.0, 62.0], test_accuracy_lecture=[59.0, 50.0], test_accuracy_flax=[1.0, 61.0]),
        flat(1, [70.0, 71.0], test_accuracy_lecture=[60.0, 68.0], test_accuracy_flax=[2.0, 61.0]),
    ]
    result = cell("cnn6_adam", runs, **RULE)
    assert set(result["rules"]) == {"torch", "lecture", "flax"}
    assert result["rules"]["torch"]["maximum"] == result["maximum"]
    assert result["rules"]["lecture"]["maximum"]["values"] == [59.0, 68.0]
    assert result["rules"]["lecture"]["maximum_epoch"]["values"] == [1, 2]
    assert result["rules"]["lecture"]["final"]["values"] == [50.0, 68.0]
    assert result["lecture_rule_cost"]["maximum"]["values"] == [3.0, 3.0]
    assert result["lecture_rule_cost"]["maximum"]["sd"] == 0
    assert result["lecture_rule_cost"]["final"]["values"] == [12.0, 3.0]


def test_under_another_rule_of_its_own():
    """With norm.rule=lecture, the rows' plain test accuracy is the lecture's."""
    runs = [flat(0, [60.0, 62.0], test_accuracy_torch=[63.0, 64.0])]
    result = cell("cnn6_adam", runs, rule="lecture", epochs=30, all_images=True)
    assert result["maximum"]["values"] == result["rules"]["lecture"]["maximum"]["values"] == [62.0]
    assert result["lecture_rule_cost"]["final"]["values"] == [2.0]
    assert "flax" not in result["rules"]


def test_the_example_has_what_the_schema_says():
    """Whoever builds on it builds on the real thing."""
    table = table_example.example(seeds=3)
    assert list(table["cells"]) == list(LECTURE)
    assert len(table["runs"]) == 9 * 3 * 2
    assert table["cells"]["cnn10_64_adam"]["runs"] == 1
    assert table["cells"]["cnn10_64_step"]["maximum"] is None
