"""The sentence that compares an unlearned model with the retrained one."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

SMALLEST = 1e-9
"""A difference below which two means are the same."""


def paired_gap(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """mean(a - b) over N records and its standard error, sd(a - b) / sqrt(N)."""
    gaps = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    if len(gaps) < 2:
        return float(gaps.mean()), math.inf
    return float(gaps.mean()), float(gaps.std(ddof=1) / math.sqrt(len(gaps)))


def standing(values: Mapping[str, Sequence[float]]) -> str:
    """``like``, ``above`` or ``below`` retrained, or ``not compared`` without one.

    Like: the means are within two standard errors of the paired difference.
    """
    if "retrained" not in values:
        return "not compared"
    gap, error = paired_gap(values["unlearned"], values["retrained"])
    if abs(gap) <= 2 * error or abs(gap) < SMALLEST:
        return "like retrained"
    return "above retrained" if gap > 0 else "below retrained"


def above_of(parts: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Names the parts in which the unlearned model is above the retrained, or ""."""
    found = [
        f"{label} ({np.mean(own['unlearned']):.3f} against "
        f"{np.mean(own['retrained']):.3f})"
        for label, own in parts.items()
        if standing(own) == "above retrained"
    ]
    return f"Above the retrained model: {', '.join(found)}." if found else ""


def verdict_of(measure: str, values: Mapping[str, Sequence[float]], more: str) -> str:
    """Says what the `standing` of the unlearned model is."""
    mean = {role: float(np.mean(own)) for role, own in values.items()}
    unlearned, found = mean["unlearned"], standing(values)
    if found == "not compared":
        return (
            f"{measure}: {unlearned:.3f} unlearned, {mean['original']:.3f} original; "
            "this run has no retrained model to compare with."
        )
    gap, error = paired_gap(values["unlearned"], values["retrained"])
    pair = f"{unlearned:.3f} against {mean['retrained']:.3f} retrained"
    if found == "like retrained":
        return (
            f"{measure}: {pair}, within two standard errors over "
            f"{len(values['unlearned'])} records; this test cannot tell the unlearned "
            "model from the retrained one."
        )
    if found == "above retrained":
        return f"{measure}: {pair}, {gap:.3f} ± {error:.3f} above; {more}."
    return (
        f"{measure}: {pair}, {-gap:.3f} ± {error:.3f} below; less than retraining "
        "leaves is a difference too."
    )
