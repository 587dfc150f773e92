"""Running statistics after one batch in training, and the rule that the port follows for them.

PyTorch: new = (1 - momentum) old + momentum batch, with the unbiased variance of the batch. Flax: momentum is the
weight of the old value, and the variance is biased.
"""

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
    groups: dict[tuple, list[Call]] = {}
    for call in calls:
        names = call.parameters.get("running_mean"), call.parameters.get("running_var")
        if None not in names and call.arguments.get("training", False):
            groups.setdefault(names, []).append(call)
    results = []
    for names, its_calls in groups.items():
        pieces = [next(iter(mapping.of(name)), None) for name in names]
        if None in pieces or any(piece.flax not in port.stats for piece in pieces):
            continue
        new = [piece.to_torch(_new(port, piece.flax)) for piece in pieces]
        results.append(_judge(its_calls, (pieces[0].flax, pieces[1].flax), *new))
    return results


def _new(port: PortRun, path: str) -> np.ndarray:
    value = port.values[port.stats[path]]
    return np.asarray(value.array, np.float64)


def _judge(calls: list[Call], paths: tuple[str, str], mean: np.ndarray, var: np.ndarray) -> StatisticsResult:
    """What rule gives the port's new mean and variance; `calls` are all uses of one norm, in their order."""
    first = calls[0]
    old = first.before["running_mean"].numpy(), first.before["running_var"].numpy()
    momentum = first.arguments.get("momentum", 0.1)

    def fits(weight: float, unbiased: bool, times: int = 1) -> bool:
        expected = _after(calls * times, old, weight, unbiased)
        return max(_error(mean, expected[0]), _error(var, expected[1])) <= _TOLERANCE

    expected = _after(calls, old, momentum, True)
    error = max(_error(mean, expected[0]), _error(var, expected[1]))

    def result(cause="", says="", fix="", severity=FAULT):
        return StatisticsResult(first, paths, error, cause, says, fix, severity)

    if error <= _TOLERANCE:
        return result()
    right = f"nn.BatchNorm(momentum={number(1 - momentum)})"
    if fits(momentum, False):
        return result(
            "running_variance",
            "keeps the biased variance of the batch; PyTorch keeps the unbiased one, n / (n - 1) of it",
            "stock nn.BatchNorm cannot; cifar_jax.BatchNorm(rule=torch_rule(momentum)) does",
            NOTE,
        )
    if fits(0.0, True):
        return result(
            "statistics_not_updated",
            "does not update the running statistics in training",
            "model.apply(..., mutable=['batch_stats']) and use_running_average=not train",
        )
    batch_mean = _batch(first)[0]
    weights = [_weight(mean, old[0], batch_mean), 0.01, 0.001, 0.1, 0.9, 0.99, 0.999, 0.2, 0.05, 1.0]
    for weight in weights if len(calls) > 1 else weights[:1]:
        for unbiased in (True, False):
            if fits(weight, unbiased):
                return result(
                    "running_average",
                    f"gives the new batch the weight {number(weight)} where PyTorch gives it {number(momentum)}"
                    f" (momentum {number(1 - weight)} in Flax's words)"
                    + ("" if unbiased else ", and keeps the biased variance"),
                    right,
                )
    for times in (2, 3):
        if fits(momentum, True, times) or fits(momentum, False, times):
            return result("statistics_twice", f"updates the running statistics {times} times for each batch", right)
    if _error(mean, expected[0]) <= _TOLERANCE:
        return result("running_variance", "keeps another running variance than PyTorch", right)
    return result("", "", right)


def _batch(call: Call) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean and biased variance of a norm's input by channel, and how many values each has."""
    x = call.arguments["input"].detach().numpy()
    axes = (0, *range(2, x.ndim))
    return x.mean(axes), x.var(axes), x.size // x.shape[1]


def _after(calls: list[Call], old: tuple, weight: float, unbiased: bool) -> tuple[np.ndarray, np.ndarray]:
    """Running mean and variance after all uses of a norm."""
    mean, var = old
    for call in calls:
        batch_mean, batch_var, count = _batch(call)
        kept = batch_var * (count / max(count - 1, 1) if unbiased else 1.0)
        mean, var = _step(mean, batch_mean, weight), _step(var, kept, weight)
    return mean, var


def _step(old: np.ndarray, new: np.ndarray, weight: float) -> np.ndarray:
    return (1 - weight) * old + weight * new


def _weight(result: np.ndarray, old: np.ndarray, new: np.ndarray) -> float:
    """The weight of the new value, by least squares."""
    direction = new - old
    return float(((result - old) * direction).sum() / max(float((direction**2).sum()), 1e-300))


def _error(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max() / max(float(np.abs(other).max()), 1e-300))
