"""Forget quality: are the truth ratios distributed as the retrained model's?"""

import math
from typing import NamedTuple

import numpy as np

from dareu_jax.evaluation.metrics.metric import Direction, declare_each

Array = np.ndarray
NEGLIGIBLE = 50.0  # nats below the first term of a sum, after which nothing changes

_BEST = "those of two retrained models: the most that a perfect method can expect"
_PARTS: tuple[tuple[str, str, str, Direction, str], ...] = (
    ("forget_quality", "forget quality (KS p)", "KS p", "higher", "p"),
    ("log10_forget_quality", "log10 p", "log10 p", "higher", "log10 of the p"),
    ("ks_statistic", "KS distance", "KS distance", "lower", "Largest distance"),
)
for _name, _label, _short, _direction, _what in _PARTS:
    _log = _name.startswith("log10")
    _test = f"{_what} of the two-sample Kolmogorov-Smirnov test between forget truth"
    _whose = "the model's and the retrained one's"
    declare_each(
        [
            (_name, _label, _direction, f"{_test} ratios, {_whose}."),
            (
                f"{_name}_of_retrainings",
                f"two retrainings, {_short}",
                _direction,
                f"{_test} ratios, {_BEST}.",
            ),
        ],
        of=("pair",),
        low=-math.inf if _log else 0.0,
        high=0.0 if _log else 1.0,
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

    Raises:
      ValueError: no values, not equally many, or one that is not finite.
    """
    n = len(candidate)
    if n == 0 or n != len(retrained):
        raise ValueError(f"{n} values against {len(retrained)}: the rows must be equal")
    if not (np.isfinite(candidate).all() and np.isfinite(retrained).all()):
        raise ValueError("a truth ratio is not finite")
    a, b = np.sort(candidate), np.sort(retrained)
    at = np.concatenate([a, b])
    gaps = np.searchsorted(a, at, "right") - np.searchsorted(b, at, "right")
    steps = int(np.abs(gaps).max())
    log_p = log_p_value(n, steps)
    return ForgetQuality(
        p=math.exp(log_p),
        log10_p=log_p / math.log(10.0),
        statistic=steps / n,
        floor=steps == n,
    )


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
