"""Forget quality: are the truth ratios distributed as the retrained model's?"""

import math
from typing import NamedTuple

import numpy as np

from dareu_jax.evaluation.metrics.metric import Direction, Metric, declare

Array = np.ndarray
NEGLIGIBLE = 50.0  # nats below the first term of a sum, after which nothing changes

_TEST = "two-sample Kolmogorov-Smirnov test between forget truth ratios"
_MODELS = "the model's and the retrained one's"
_BEST = "those of two retrained models: the most that a perfect method can expect"
_PARTS: tuple[tuple[str, str, str, Direction, float, str], ...] = (
    ("forget_quality", "forget quality (KS p)", "KS p", "higher", 0.0, "p"),
    (
        "log10_forget_quality",
        "log10 p",
        "log10 p",
        "higher",
        -math.inf,
        "log10 of the p",
    ),
    ("ks_statistic", "KS distance", "KS distance", "lower", 0.0, "Largest distance"),
)
for _name, _label, _short, _direction, _low, _what in _PARTS:
    for _end, _heading, _whose in (
        ("", _label, _MODELS),
        ("_of_retrainings", f"two retrainings, {_short}", _BEST),
    ):
        declare(
            Metric(
                name=_name + _end,
                label=_heading,
                direction=_direction,
                low=_low,
                high=0.0 if math.isinf(_low) else 1.0,
                about=f"{_what} of the {_TEST}, {_whose}.",
                of=("pair",),
            )
        )


class ForgetQuality(NamedTuple):
    """Two-sample Kolmogorov-Smirnov test of N against N values.

    Attributes:
      p: probability of a distance like this one between samples of one distribution;
        0 where it is too small for a float.
      log10_p: always finite.
      statistic: largest distance D of the two empirical distribution functions.
      floor: the samples are disjoint: with N values nothing is farther apart.
    """

    p: float
    log10_p: float
    statistic: float
    floor: bool


def forget_quality(candidate: Array, retrained: Array) -> ForgetQuality:
    """Return the exact two-sided test between the truth ratios of two models.

    Maini et al. 2024 (arXiv 2401.06121). The same for a ratio and for its inverse.

    Args:
      candidate, retrained: ``[N]`` truth ratios of the same forget rows.

    Raises:
      ValueError: no values, not equally many, or one that is not finite.
    """
    n = len(candidate)
    if n == 0 or n != len(retrained):
        raise ValueError(f"{n} values against {len(retrained)}: the rows must be equal")
    if not (np.isfinite(candidate).all() and np.isfinite(retrained).all()):
        raise ValueError("a truth ratio is not finite")
    steps = largest_gap(candidate, retrained)
    log_p = log_p_value(n, steps)
    return ForgetQuality(
        p=math.exp(log_p),
        log10_p=log_p / math.log(10.0),
        statistic=steps / n,
        floor=steps == n,
    )


def largest_gap(a: Array, b: Array) -> int:
    """Return ``N D``: the largest gap of two counts of values ``<= x``, over all x."""
    a, b = np.sort(a), np.sort(b)
    at = np.concatenate([a, b])
    gaps = np.searchsorted(a, at, "right") - np.searchsorted(b, at, "right")
    return int(np.abs(gaps).max())


def log_p_value(n: int, steps: int) -> float:
    """Return ``ln 2 sum_{k>=1} (-1)^(k-1) C(2n, n - k h) / C(2n, n)``, h = steps.

    The exact distribution of D between two samples of n (Gnedenko and Korolyuk 1951);
    ``2 / C(2n, n)`` for disjoint samples.
    """
    if steps == 0:
        return 0.0
    first = log_binomial_ratio(n, steps)
    total, sign = 0.0, 1.0
    for shift in range(steps, n + 1, steps):
        below = log_binomial_ratio(n, shift) - first
        if below < -NEGLIGIBLE:
            break
        total, sign = total + sign * math.exp(below), -sign
    return min(0.0, math.log(2.0) + first + math.log(total))


def log_binomial_ratio(n: int, shift: int) -> float:
    """Return ``ln C(2n, n - j) / C(2n, n) = sum_{i=1..j} ln (n - j + i) / (n + i)``."""
    i = np.arange(1, shift + 1)
    return float(np.log((n - shift + i) / (n + i)).sum())
