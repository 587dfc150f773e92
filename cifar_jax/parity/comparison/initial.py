"""Initial distributions: whether the port draws its weights as PyTorch does.

Each tensor is drawn several times on both sides. Two samples of at least 200 numbers are compared by the two-sample
Kolmogorov-Smirnov test, smaller ones by their means and deviations where both are constant. The bound on p is divided
by the number of tensors, so that the rate of false alarms holds for the whole comparison: 1 in 1,000.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from cifar_jax.parity.comparison.mapping import WeightMap

FALSE_ALARMS = 1e-3
_MOST = 20_000


class InitialResult(NamedTuple):
    """One tensor's initial distribution on both sides.

    name, path: of the tensor. torch, flax: in words. families: the form of both, PyTorch's first.
    p: of the test; 1 where both are the same constant.
    """

    name: str
    path: str
    torch: str
    flax: str
    families: tuple[str, str]
    p: float


def compare_initial(
    draw_torch: Callable[[int], Mapping[str, np.ndarray]],
    draw_flax: Callable[[int], Mapping[str, np.ndarray]],
    mapping: WeightMap,
    repeats: int,
) -> list[InitialResult]:
    """The tensors whose initial distributions differ.

    Args:
      draw_torch, draw_flax: seed to fresh initial arrays by name.
      mapping: pairs of parameters.
      repeats: how often each side is drawn.
    """
    samples = [(draw_torch(seed), draw_flax(seed)) for seed in range(repeats)]
    pieces = [piece for piece in mapping.pieces if piece.flax and piece.flax in samples[0][1] and piece.adds is None]
    results = []
    for piece in pieces:
        if piece.torch not in samples[0][0]:
            continue
        mine = np.concatenate([_part(one[piece.torch], piece.rows).reshape(-1) for one, _ in samples])
        theirs = np.concatenate([np.asarray(other[piece.flax]).reshape(-1) for _, other in samples])
        p = _same_distribution(mine.astype(np.float64), theirs.astype(np.float64))
        if p < FALSE_ALARMS / max(len(pieces), 1):
            results.append(
                InitialResult(
                    piece.where(), piece.flax, in_words(mine), in_words(theirs), (family_of(mine), family_of(theirs)), p
                )
            )
    return results


def _part(array: np.ndarray, rows) -> np.ndarray:
    return array if rows is None else array[rows[0] : rows[1]]


def _same_distribution(one: np.ndarray, other: np.ndarray) -> float:
    constant = np.ptp(one) == 0, np.ptp(other) == 0
    if all(constant):
        return 1.0 if abs(one[0] - other[0]) < 1e-7 else 0.0
    if any(constant):
        return 0.0
    from scipy.stats import ks_2samp

    rng = np.random.default_rng(0)
    one, other = (rng.choice(each, _MOST, replace=False) if each.size > _MOST else each for each in (one, other))
    return float(ks_2samp(one, other).pvalue)


def in_words(sample: np.ndarray) -> str:
    """A sample by its form: constant, uniform, normal, truncated normal; with its bounds or its deviation."""
    if np.ptp(sample) == 0:
        return f"constant {sample[0]:.4g}"
    family = family_of(sample)
    if family == "uniform":
        return f"uniform between {sample.min():.3g} and {sample.max():.3g}"
    return f"{family} of deviation {sample.std():.3g}"


def family_of(sample: np.ndarray) -> str:
    """The form of a distribution by its fourth moment: 1.8 for a uniform one, 3 for a normal one."""
    if np.ptp(sample) == 0:
        return "constant"
    centred = sample - sample.mean()
    fourth = float(np.mean(centred**4) / np.mean(centred**2) ** 2)
    return "uniform" if fourth < 2.05 else "truncated normal" if fourth < 2.7 else "normal"
