"""How far the aggregates of a log would move with other rows: bootstrap intervals."""

from typing import Any

import numpy as np

from dareu_jax.evaluation.bootstrap import interval, interval_of
from dareu_jax.evaluation.log_scores import (
    SETS,
    TERM_SETS,
    TEST_SETS,
    ratios,
)
from dareu_jax.evaluation.logs import EvalLog, SetLog
from dareu_jax.evaluation.mia import auc
from dareu_jax.evaluation.tow import SPLITS
from dareu_jax.evaluation.truth_ratio import TruthRatio

Ends = tuple[float, float]
Array = np.ndarray


def intervals(
    log: EvalLog, reference: EvalLog | None, kind: TruthRatio
) -> dict[str, Any]:
    """95 % percentile intervals over rows, under the names of the scores.

    Rows are drawn again within each set, those of candidate and reference together;
    the models and what they were trained on stay: seeds are another source of noise.

    Args:
      log: of the candidate; reference: of the retrained model; kind: of truth ratio.
    """
    sets = {k: set_intervals(k, log.sets[k], kind) for k in SETS if k in log.sets}
    out: dict[str, Any] = {
        "sets": sets,
        "model_utility": utility_interval(log, kind),
        "mia_auc": {name: attack_interval(one) for name, one in log.attacks.items()},
    }
    if reference is not None:
        out["tow"] = tow_interval(log, reference, SPLITS)
        out["tow_star"] = tow_interval(log, reference, SPLITS[:2])
    return out


def set_intervals(name: str, one: SetLog, kind: TruthRatio) -> dict[str, Ends]:
    """Of mean probability and ROUGE, and of the truth ratio's aggregate."""
    combine = kind.forget if name == "forget" else kind.others
    columns = {"probability": one.probability, "rouge": one.rouge}
    out = {k: interval(x) for k, x in columns.items() if x is not None}
    ratio = ratios(one, kind)
    if ratio is not None:
        out["truth_ratio"] = interval_of(combine, ratio)
    return out


def attack_interval(one: Any) -> Ends:
    """Of an attack's AUC; forget and holdout rows are drawn apart."""
    sides = (np.asarray([*side.values()]) for side in (one.forget, one.holdout))
    return interval_of(auc, *sides)


def utility_interval(log: EvalLog, kind: TruthRatio) -> Ends | None:
    """Of the harmonic mean of the nine terms; None where one is missing."""
    samples = []
    for name in TERM_SETS:
        one = log.sets.get(name)
        ratio = None if one is None else ratios(one, kind)
        if one is None or one.probability is None or one.rouge is None or ratio is None:
            return None
        samples.append(np.stack([one.probability, one.rouge, ratio], axis=1))

    def utility(*drawn: Array) -> float:
        terms = [
            term
            for rows in drawn
            for term in (rows[:, 0].mean(), rows[:, 1].mean(), kind.others(rows[:, 2]))
        ]
        return 0.0 if min(terms) <= 0.0 else len(terms) / sum(1 / x for x in terms)

    return interval_of(utility, *samples)


def tow_interval(
    log: EvalLog, reference: EvalLog, splits: tuple[str, ...]
) -> Ends | None:
    """Of the product of ``1 - |gap|`` over splits; None where one is missing."""
    samples = []
    for split in splits:
        pair = [recall_of(x, split) for x in (log, reference)]
        if pair[0] is None or pair[1] is None:
            return None
        samples.append(np.stack([pair[0], pair[1]], axis=1))

    def product(*drawn: Array) -> float:
        gaps = (abs(rows[:, 0].mean() - rows[:, 1].mean()) for rows in drawn)
        return float(np.prod([1.0 - gap for gap in gaps]))

    return interval_of(product, *samples)


def recall_of(log: EvalLog, split: str) -> Array | None:
    """ROUGE-L recall ``[N]`` of a split, rows in the order of their names."""
    names = TEST_SETS if split == "test" and split not in log.sets else (split,)
    found = []
    for name in names:
        one = log.sets.get(name)
        if one is None or one.rouge is None:
            return None
        found.append(one.rouge[np.argsort(np.asarray(one.rows))])
    return np.concatenate(found)
