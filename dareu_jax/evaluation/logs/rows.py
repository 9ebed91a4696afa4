"""Rows of a log as arrays, those of two logs in the same order."""

from collections.abc import Mapping, Sequence

import numpy as np

from dareu_jax.evaluation.logs.reading import Attack, EvalLog, SetLog
from dareu_jax.evaluation.metrics.mia import auc
from dareu_jax.evaluation.metrics.tow import TUGS
from dareu_jax.evaluation.metrics.truth_ratio import TruthRatio

Array = np.ndarray
SplitRows = dict[str, tuple[Array, ...]]
TEST_SETS = ("real_authors", "world_facts")
"""TOFU's test set, all rows alike."""


def finite_rows(values: Array) -> Array:
    """Return the values ``[n]`` of ``[N]`` rows that have one."""
    return values[~np.isnan(values)]


def stacked(*columns: Array) -> Array:
    """Return ``[n, K]`` of K columns ``[N]``, at the rows that have all of them."""
    table = np.stack(columns, axis=1)
    return table[~np.isnan(table).any(axis=1)]


def ratios(one: SetLog, kind: TruthRatio) -> Array | None:
    """Return truth ratios ``[n]`` of the rows that have one; None without any."""
    found = ratios_by_row(one, kind)
    return None if found is None else finite_rows(found)


def ratios_by_row(one: SetLog, kind: TruthRatio) -> Array | None:
    """Return truth ratio of every row ``[N]``, NaN where a loss is missing."""
    if one.right_loss is None or one.wrong_loss is None:
        return None
    found = kind.rows(one.right_loss, one.wrong_loss)
    return None if np.isnan(found).all() else found


def shared_ratios(
    one: SetLog, other: SetLog, kind: TruthRatio
) -> tuple[Array, Array] | None:
    """Return truth ratios ``[n]`` of two models, of the rows that have both."""
    found = [ratios_by_row(x, kind) for x in (one, other)]
    ours, theirs = (
        None if x is None else x[np.argsort(np.asarray(whose.rows))]
        for x, whose in zip(found, (one, other), strict=True)
    )
    if ours is None or theirs is None:
        return None
    both = stacked(ours, theirs)
    return (both[:, 0], both[:, 1]) if len(both) else None


def sides(attack: Attack) -> tuple[Array, Array]:
    """Return scores of forget ``[n]`` and holdout ``[m]``, of the rows with a score."""
    forget, holdout = sides_by_row(attack)
    return finite_rows(forget), finite_rows(holdout)


def sides_by_row(attack: Attack) -> tuple[Array, Array]:
    """Return scores of forget ``[N]`` and holdout ``[M]``, ordered by row names."""
    forget, holdout = (
        np.asarray([scores for _, scores in sorted(side.items())])
        for side in (attack.forget, attack.holdout)
    )
    return forget, holdout


def split_rows(log: EvalLog, source: str) -> tuple[Array, ...] | None:
    """Return ROUGE-L recall ``([N],)`` of a set, or an attack's sides, or None."""
    if source in log.attacks:
        return sides_by_row(log.attacks[source])
    pooled = source == "test" and source not in log.sets
    found = []
    for name in TEST_SETS if pooled else (source,):
        one = log.sets.get(name)
        if one is None or one.rouge is None:
            return None
        found.append(one.rouge[np.argsort(np.asarray(one.rows))])
    return (np.concatenate(found),)


def tug_rows(
    log: EvalLog, reference: EvalLog, name: str
) -> tuple[SplitRows, SplitRows] | None:
    """Return both models' rows by split of a Tug-of-War of `TUGS`.

    None where a log lacks a split, or the two have different test sets.
    """
    forget, splits = TUGS[name]
    sources = {x: forget if x == "forget" else x for x in splits}
    if "test" in sources and ("test" in log.sets) != ("test" in reference.sets):
        return None
    found: list[SplitRows] = []
    for one in (log, reference):
        rows = {split: split_rows(one, source) for split, source in sources.items()}
        found.append({split: x for split, x in rows.items() if x is not None})
    ours, theirs = found
    return (ours, theirs) if len(ours) == len(theirs) == len(splits) else None


def tug_scores(rows: Mapping[str, Sequence[Array]]) -> dict[str, float]:
    """Return ``a`` of every split: the mean of its one array, the AUC of its two."""
    found = {split: [finite_rows(x) for x in both] for split, both in rows.items()}
    return {
        split: float(x[0].mean()) if len(x) == 1 else auc(*x)
        for split, x in found.items()
    }
