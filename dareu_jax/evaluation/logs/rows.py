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


def ratios(one: SetLog, kind: TruthRatio) -> Array | None:
    """Return truth ratio of every row ``[N]``."""
    if one.right_loss is None or one.wrong_loss is None:
        return None
    return kind.rows(one.right_loss, one.wrong_loss)


def sides(attack: Attack) -> tuple[Array, Array]:
    """Return scores of forget ``[N]`` and holdout ``[M]``, ordered by row names."""
    forget, holdout = (
        np.asarray([scores for _, scores in sorted(side.items())])
        for side in (attack.forget, attack.holdout)
    )
    return forget, holdout


def split_rows(log: EvalLog, source: str) -> tuple[Array, ...] | None:
    """Return ROUGE-L recall ``([N],)`` of a set, or `sides` of an attack, or None."""
    if source in log.attacks:
        return sides(log.attacks[source])
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
    return {
        split: float(x[0].mean()) if len(x) == 1 else auc(*x)
        for split, x in rows.items()
    }
