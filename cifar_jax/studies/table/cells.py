"""What the runs of one config say together. Pure functions of their rows of metrics; what was not measured is None."""

import statistics
from collections.abc import Iterable, Sequence

from cifar_jax.nn.batch_norm import RULES
from cifar_jax.studies.table.lecture import EPOCHS, LECTURE

# Deviations on either side of the mean that count as the spread of single runs, such as the lecture's.
SPREAD = 2


def statistic(values: Iterable[float]) -> dict | None:
    """Mean and sample deviation (n - 1; None for one value) of what was measured; None of nothing.

    >>> statistic([61.0, 62.0, 63.0])
    {'mean': 62.0, 'sd': 1.0, 'n': 3, 'values': [61.0, 62.0, 63.0]}
    """
    values = list(values)
    if not values:
        return None
    return {
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "n": len(values),
        "values": values,
    }


def best(history: Sequence[dict], key: str) -> dict:
    """The row in which `key` is highest; of equals, the first."""
    return max(history, key=lambda row: row[key])


def cell(name: str, runs: Sequence[dict], *, rule: str, epochs: int, all_images: bool) -> dict:
    """The cell of the config `name`, of those among `runs` that are done.

    Args:
      name: of the config; its file's name without the ending.
      runs: of this config, as `table.json` has them.
      rule: BatchNorm's, under which `test_accuracy` was measured; rows have `test_accuracy_RULE` for others.
      epochs: of each run.
      all_images: whether all images were trained on and evaluated. Only then, and after as many epochs, is the
        lecture's figure compared.
    """
    done = [run for run in runs if run["status"] == "done"]
    full = [run["history"] for run in done if not run["holdout"]]
    companions = [run["history"] for run in done if run["holdout"]]
    lecture = LECTURE.get(name)
    under = {each: _under_rule(full, key) for each, key in _accuracy_keys(full, rule).items()}
    own = under.get(rule, {"maximum": None, "final": None, "maximum_epoch": None})
    difference = within = None
    if lecture and own["maximum"] and all_images and epochs == EPOCHS:
        difference = own["maximum"]["mean"] - lecture.accuracy
        if own["maximum"]["sd"] is not None:
            within = abs(difference) <= SPREAD * own["maximum"]["sd"]
    return {
        "network": lecture.network if lecture else None,
        "recipe": lecture.recipe if lecture else None,
        "epochs": epochs,
        "rule": rule,
        "runs": len(full),
        **own,
        "at_best_holdout": statistic(best(rows, "holdout_accuracy")["test_accuracy"] for rows in companions),
        "seconds": statistic(sum(row["seconds"] for row in rows) for rows in full),
        "lecture": lecture.accuracy if lecture else None,
        "lecture_epoch": lecture.epoch if lecture else None,
        "difference": difference,
        "within_spread": within,
        "rules": under,
        "lecture_rule_cost": _cost(under),
    }


def _accuracy_keys(histories: Sequence[Sequence[dict]], rule: str) -> dict[str, str]:
    """The key of the test accuracy under each rule that all runs were evaluated by, in the order of `RULES`."""
    keys = {each: "test_accuracy" if each == rule else f"test_accuracy_{each}" for each in RULES}
    measured = set.intersection(*(set(rows[-1]) for rows in histories)) if histories else set()
    return {each: key for each, key in keys.items() if key in measured}


def _under_rule(histories: Sequence[Sequence[dict]], key: str) -> dict:
    bests = [best(rows, key) for rows in histories]
    return {
        "maximum": statistic(row[key] for row in bests),
        "final": statistic(rows[-1][key] for rows in histories),
        "maximum_epoch": statistic(row["epoch"] for row in bests),
    }


def _cost(under: dict[str, dict]) -> dict:
    """Points lost by the lecture's rule against torch's, run by run, since both saw the same training."""

    def lost(measure):
        if not {"torch", "lecture"} <= set(under):
            return None
        pairs = zip(under["torch"][measure]["values"], under["lecture"][measure]["values"], strict=True)
        return statistic(torch - lecture for torch, lecture in pairs)

    return {measure: lost(measure) for measure in ("maximum", "final")}
