"""Percentile intervals by resampling rows (Efron 1979), same bits for one seed."""

from collections.abc import Callable

import numpy as np

from dareu_jax.errors import UserError
from dareu_jax.evaluation.rows import finite

Array = np.ndarray
AT_ONCE = 2**22
"""Resampled numbers that exist at the same time: 32 MiB each of indices and values."""


def interval(
    values: Array, draws: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """``(low, high)`` of the mean over rows, by the percentile bootstrap.

    One row, or rows that are all alike, give the value twice.

    Args:
      values: ``[N]``; draws: resamplings of N rows with replacement.
      level: share of the draws' means between the two, in (0, 1).

    Raises:
      UserError: there is no value, one is not finite (its index is named), or draws
        or level are out of range.
    """
    numbers = finite("bootstrap", np.ravel(values))
    _check(draws, level)
    rng, count, means = np.random.default_rng(seed), len(numbers), []
    at_once = max(1, AT_ONCE // count)
    for start in range(0, draws, at_once):
        shape = (min(at_once, draws - start), count)
        means.append(numbers[rng.integers(0, count, shape)].mean(axis=1))
    found = np.concatenate(means)  # rounding may lift a mean of equal rows off them
    return _ends(np.clip(found, numbers.min(), numbers.max()), level)


def interval_of(
    statistic: Callable[..., float],
    *samples: Array,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """``(low, high)`` of ``statistic(*samples)``, by the percentile bootstrap.

    Rows of one sample are drawn together and samples apart from each other. So an AUC
    takes two samples, ``[N]`` and ``[M]``; a gap between two models on the same rows
    takes one ``[N, 2]``; a ToW takes three of these, one per split.

    Args:
      statistic: of arrays shaped as the samples; samples: ``[N, ...]`` each.
      draws, level, seed: as in `interval`.

    Raises:
      UserError: a sample is empty or has a value that is not finite, the statistic of
        some draw is not finite, or draws or level are out of range.
    """
    _check(draws, level)
    numbers = [finite(f"sample {i}", sample) for i, sample in enumerate(samples)]
    rng = np.random.default_rng(seed)

    def one() -> float:
        return float(statistic(*(x[rng.integers(0, len(x), len(x))] for x in numbers)))

    found = np.asarray([one() for _ in range(draws)])
    return _ends(finite("bootstrapped statistic", found), level)


def _check(draws: int, level: float) -> None:
    if draws < 1:
        raise UserError(f"bootstrap: {draws} draws, it needs at least 1")
    if not 0.0 < level < 1.0:
        raise UserError(f"bootstrap: level {level} lies outside (0, 1)")


def _ends(found: Array, level: float) -> tuple[float, float]:
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(found, [tail, 1.0 - tail])
    return float(low), float(high)
