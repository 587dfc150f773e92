"""Running statistics after one batch in training, and the rule that the port follows for them.

PyTorch: new = (1 - momentum) old + momentum batch, with the unbiased variance of the batch. Flax: momentum is the
weight of the old value, and the variance is biased.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from cifar_jax.parity.comparison.causes.proposal import FAULT, NOTE, number
from cifar_jax.parity.comparison.mapping import WeightMap
from cifar_jax.parity.comparison.torch_side import Call
from cifar_jax.parity.comparison.walk import PortRun


class StatisticsResult(NamedTuple):
    """One norm's running statistics.

    call: the norm. paths: the port's arrays of mean and variance. error: largest difference over the largest value.
    cause, says, fix, severity: as in `walk.Difference`; empty where both sides agree.
    """

    call: Call
    paths: tuple[str, str]
    error: float
    cause: str
    says: str
    fix: str
    severity: str


_TOLERANCE = 1e-7


def compare_statistics(calls: list[Call], port: PortRun, mapping: WeightMap) -> list[StatisticsResult]:
    """Compares the new running statistics of each BatchNorm, and finds the rule where they differ.

    Args:
      calls: PyTorch's run in training, whose norms take the port's values.
      port: the port's run in training.
      mapping: pairs of parameters and statistics.
    """
    results, seen = [], set()
    for call in calls:
        names = call.parameters.get("running_mean"), call.parameters.get("running_var")
        if None in names or not call.arguments.get("training", False) or names in seen:
            continue
        seen.add(names)
        pieces = [next(iter(mapping.of(name)), None) for name in names]
        if None in pieces or any(piece.flax not in port.stats for piece in pieces):
            continue
        new = [piece.to_torch(_new(port, piece.flax)) for piece in pieces]
        results.append(_judge(call, (pieces[0].flax, pieces[1].flax), *new))
    return results


def _new(port: PortRun, path: str) -> np.ndarray:
    value = port.values[port.stats[path]]
    return np.asarray(value.array, np.float64)


def _judge(call: Call, paths: tuple[str, str], mean: np.ndarray, var: np.ndarray) -> StatisticsResult:
    x = call.arguments["input"].detach().numpy()
    axes = (0, *range(2, x.ndim))
    old = {name: call.before[name].numpy() for name in ("running_mean", "running_var")}
    batch_mean, biased = x.mean(axes), x.var(axes)
    count = x.size // x.shape[1]
    unbiased = biased * count / max(count - 1, 1)
    momentum = call.arguments.get("momentum", 0.1)
    expected = _step(old["running_mean"], batch_mean, momentum), _step(old["running_var"], unbiased, momentum)
    error = max(_error(mean, expected[0]), _error(var, expected[1]))

    def result(cause="", says="", fix="", severity=FAULT):
        return StatisticsResult(call, paths, error, cause, says, fix, severity)

    if error <= _TOLERANCE:
        return result()
    right = f"nn.BatchNorm(momentum={number(1 - momentum)})"
    if (
        _error(mean, expected[0]) <= _TOLERANCE
        and _error(var, _step(old["running_var"], biased, momentum)) <= _TOLERANCE
    ):
        return result(
            "running_variance",
            "keeps the biased variance of the batch; PyTorch keeps the unbiased one, n / (n - 1) of it",
            "stock nn.BatchNorm cannot; cifar_jax.BatchNorm(rule=torch_rule(momentum)) does",
            NOTE,
        )
    if _error(mean, old["running_mean"]) <= _TOLERANCE and _error(var, old["running_var"]) <= _TOLERANCE:
        return result(
            "statistics_not_updated",
            "does not update the running statistics in training",
            "model.apply(..., mutable=['batch_stats']) and use_running_average=not train",
        )
    weight = _weight(mean, old["running_mean"], batch_mean)
    for kept, words in ((unbiased, ""), (biased, ", and keeps the biased variance")):
        fitting = max(
            _error(mean, _step(old["running_mean"], batch_mean, weight)),
            _error(var, _step(old["running_var"], kept, weight)),
        )
        if fitting <= _TOLERANCE:
            return result(
                "running_average",
                f"gives the new batch the weight {number(weight)} where PyTorch gives it {number(momentum)}"
                f" (momentum {number(1 - weight)} in Flax's words){words}",
                right,
            )
    if _error(mean, expected[0]) <= _TOLERANCE:
        weight = _weight(var, old["running_var"], unbiased)
        return result("running_variance", f"keeps another running variance (weight {number(weight)})", right)
    for times in (2, 3):
        repeated = old["running_mean"]
        for _ in range(times):
            repeated = _step(repeated, batch_mean, momentum)
        if _error(mean, repeated) <= _TOLERANCE:
            return result("statistics_twice", f"updates the running statistics {times} times for each batch", right)
    return result("", "", right)


def _step(old: np.ndarray, new: np.ndarray, weight: float) -> np.ndarray:
    return (1 - weight) * old + weight * new


def _weight(result: np.ndarray, old: np.ndarray, new: np.ndarray) -> float:
    """The weight of the new value, by least squares."""
    direction = new - old
    return float(((result - old) * direction).sum() / max(float((direction**2).sum()), 1e-300))


def _error(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max() / max(float(np.abs(other).max()), 1e-300))


def new_statistics(port: PortRun) -> Mapping[str, np.ndarray]:
    """The port's statistics after the batch, by path."""
    return {path: np.asarray(port.values[number_].array) for path, number_ in port.stats.items()}
