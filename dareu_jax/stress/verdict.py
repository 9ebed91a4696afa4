"""The sentence that compares an unlearned model with the retrained one."""

import math
from collections.abc import Mapping, Sequence

import numpy as np


def paired_gap(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """mean(a - b) over N records and its standard error, sd(a - b) / sqrt(N).

    The error of one record is infinite: it says nothing of the spread.
    """
    gaps = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    if len(gaps) < 2:
        return float(gaps.mean()), math.inf
    return float(gaps.mean()), float(gaps.std(ddof=1) / math.sqrt(len(gaps)))


def verdict_of(measure: str, values: Mapping[str, Sequence[float]], more: str) -> str:
    """Says whether the unlearned model is like, above or below the retrained one.

    Like: the means are within two standard errors of the paired difference.

    Args:
      measure: what the numbers are; more: what being above means.
      values: role -> value per forget record.
    """
    mean = {role: float(np.mean(own)) for role, own in values.items()}
    unlearned = mean["unlearned"]
    if "retrained" not in values:
        return (
            f"{measure}: {unlearned:.3f} unlearned, {mean['original']:.3f} original; "
            "this run has no retrained model to compare with."
        )
    gap, error = paired_gap(values["unlearned"], values["retrained"])
    pair = f"{unlearned:.3f} against {mean['retrained']:.3f} retrained"
    if abs(gap) <= 2 * error or abs(gap) < 1e-9:
        return (
            f"{measure}: {pair}, within two standard errors over "
            f"{len(values['unlearned'])} records; this test cannot tell the unlearned "
            "model from the retrained one."
        )
    if gap > 0:
        return f"{measure}: {pair}, {gap:.3f} ± {error:.3f} above; {more}."
    return (
        f"{measure}: {pair}, {-gap:.3f} ± {error:.3f} below; less than retraining "
        "leaves is a difference too."
    )
