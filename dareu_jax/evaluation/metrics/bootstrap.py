"""Percentile intervals by resampling rows (Efron 1979), same bits for one seed."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from dareu_jax.errors import UserError
from dareu_jax.evaluation.metrics.rows import finite

Array = np.ndarray
AT_ONCE = 2**22
"""Resampled numbers that exist at the same time: 32 MiB each of indices and values."""


def interval(
    values: Array, draws: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Return ``(low, high)`` of the mean over rows, by the percentile bootstrap.

    One row, or rows that are all alike, give the value twice.

    Raises:
      UserError: there is no value, one is not finite (its index is named), or draws
        or level are out of range.
    """
    numbers = finite("bootstrap", np.ravel(values))
    how = _checked(draws, level, seed) | {"batch": max(1, AT_ONCE // len(numbers))}
    if len(numbers) == 1:  # scipy refuses it
        return float(numbers[0]), float(numbers[0])
    ends = stats.bootstrap([numbers], np.mean, **how).confidence_interval
    # rounding may lift a mean of equal rows off them
    low, high = np.clip(ends, numbers.min(), numbers.max())
    return float(low), float(high)


def interval_of(
    statistic: Callable[..., float],
    *samples: Array,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Return ``(low, high)`` of ``statistic(*samples)``, by the percentile bootstrap.

    Rows of one sample are drawn together and samples apart from each other. So an AUC
    takes two samples, ``[N]`` and ``[M]``; a gap between two models on the same rows
    takes one ``[N, 2]``; a ToW takes three of these, one per split.

    Raises:
      UserError: as of `interval`, for every sample and for every draw's statistic.
    """
    numbers = [finite(f"sample {i}", sample) for i, sample in enumerate(samples)]

    def of_rows(*rows: Array) -> list[float]:
        return [statistic(*(x[at] for x, at in zip(numbers, rows, strict=True)))]

    sizes = [len(x) for x in numbers]
    low, high = intervals_of(of_rows, sizes, draws=draws, level=level, seed=seed)
    return float(low[0]), float(high[0])


def intervals_of(
    statistics: Callable[..., Sequence[float]],
    sizes: Sequence[int],
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[Array, Array]:
    """Return ``(low, high)``, ``[K]`` each, of K numbers that use the same rows.

    Args:
      statistics: of one array of row numbers per sample, returns K numbers.
      sizes: rows of each sample; draws, level, seed: as in `interval`.

    Raises:
      UserError: as of `interval`, for the numbers of every draw.
    """
    how = _checked(draws, level, seed) | {"batch": 1, "vectorized": True}
    several = [np.arange(size) for size in sizes if size > 1]

    def of_draw(*drawn: Array, axis: int) -> Array:
        left = iter(drawn)
        rows = [next(left)[0] if size > 1 else np.arange(size) for size in sizes]
        return finite("bootstrapped statistic", np.asarray(statistics(*rows)))[:, None]

    if not several:  # scipy refuses samples of one row
        only = of_draw(axis=-1)[:, 0]
        return only, only
    low, high = stats.bootstrap(several, of_draw, **how).confidence_interval
    return low, high


def _checked(draws: int, level: float, seed: int) -> dict[str, Any]:
    """Return the arguments of `scipy.stats.bootstrap`, if they are in range."""
    if draws < 1:
        raise UserError(f"bootstrap: {draws} draws, it needs at least 1")
    if not 0.0 < level < 1.0:
        raise UserError(f"bootstrap: level {level} lies outside (0, 1)")
    return {
        "n_resamples": draws,
        "confidence_level": level,
        "method": "percentile",
        "rng": np.random.default_rng(seed),
    }
