"""Bootstrap intervals of the aggregates of a log, over its rows."""

from typing import Any

import numpy as np

from dareu_jax.evaluation.logs.reading import Attack, EvalLog, SetLog
from dareu_jax.evaluation.logs.rows import (
    finite_rows,
    ratios,
    ratios_by_row,
    sides,
    sides_by_row,
    stacked,
    tug_rows,
    tug_scores,
)
from dareu_jax.evaluation.logs.scores import SETS, TERM_SETS
from dareu_jax.evaluation.metrics.bootstrap import interval, interval_of
from dareu_jax.evaluation.metrics.mia import auc, privleak
from dareu_jax.evaluation.metrics.tow import TUGS, tow
from dareu_jax.evaluation.metrics.truth_ratio import TruthRatio

Ends = tuple[float, float]
Array = np.ndarray


def intervals(
    log: EvalLog, reference: EvalLog | None, kind: TruthRatio
) -> dict[str, Any]:
    """Return 95 % percentile intervals over rows, under the names of the scores.

    Rows are drawn again within each set, those of candidate and reference together;
    the models and what they were trained on stay: seeds are another source of noise.
    A number of several values per row takes the rows that have all of them.
    """
    sets = {k: set_intervals(k, log.sets[k], kind) for k in SETS if k in log.sets}
    out: dict[str, Any] = {
        "sets": sets,
        "model_utility": utility_interval(log, kind),
        "mia_auc": {k: interval_of(auc, *sides(x)) for k, x in log.attacks.items()},
        "extraction_strength": None
        if log.extraction is None
        else interval(finite_rows(log.extraction)),
    }
    if reference is not None:
        out |= {name: tow_interval(log, reference, name) for name in TUGS}
        out["privleak_by_attack"] = {
            name: leak_interval(one, reference.attacks[name])
            for name, one in log.attacks.items()
            if name in reference.attacks
        }
    return out


def set_intervals(name: str, one: SetLog, kind: TruthRatio) -> dict[str, Ends]:
    """Return those of mean probability, mean ROUGE and the truth ratio's aggregate."""
    columns = {"probability": one.probability, "rouge": one.rouge}
    out = {k: interval(finite_rows(x)) for k, x in columns.items() if x is not None}
    if (ratio := ratios(one, kind)) is not None:
        combine = kind.forget if name == "forget" else kind.others
        out["truth_ratio"] = interval_of(combine, ratio)
    return out


def leak_interval(one: Attack, other: Attack) -> Ends | None:
    """Return that of PrivLeak, beside the retrained model's scores of these texts."""
    forget, holdout = (
        stacked(*both)
        for both in zip(sides_by_row(one), sides_by_row(other), strict=True)
    )
    if not (len(forget) and len(holdout)):
        return None

    def leak(forget: Array, holdout: Array) -> float:
        return privleak(*(auc(forget[:, k], holdout[:, k]) for k in (0, 1)))

    return interval_of(leak, forget, holdout)


def utility_interval(log: EvalLog, kind: TruthRatio) -> Ends | None:
    """Return that of the harmonic mean of the nine terms; None where one is missing."""
    samples = []
    for name in TERM_SETS:
        one = log.sets.get(name)
        ratio = None if one is None else ratios_by_row(one, kind)
        if one is None or one.probability is None or one.rouge is None or ratio is None:
            return None
        samples.append(stacked(one.probability, one.rouge, ratio))
    if not all(map(len, samples)):
        return None

    def utility(*drawn: Array) -> float:
        terms = [
            term
            for rows in drawn
            for term in (rows[:, 0].mean(), rows[:, 1].mean(), kind.others(rows[:, 2]))
        ]
        return 0.0 if min(terms) <= 0.0 else len(terms) / sum(1 / x for x in terms)

    return interval_of(utility, *samples)


def tow_interval(log: EvalLog, reference: EvalLog, name: str) -> Ends | None:
    """Return that of a Tug-of-War of `TUGS`; None where there is none."""
    if (found := tug_rows(log, reference, name)) is None:
        return None
    ours, theirs = found
    samples = {
        split: [stacked(*both) for both in zip(ours[split], theirs[split])]
        for split in ours
    }
    if not all(len(x) for xs in samples.values() for x in xs):
        return None

    def product(*drawn: Array) -> float:
        left = iter(drawn)
        rows = {split: [next(left) for _ in xs] for split, xs in samples.items()}
        unlearned, retrained = (
            tug_scores({split: [x[:, k] for x in xs] for split, xs in rows.items()})
            for k in (0, 1)
        )
        return tow(unlearned, retrained, tuple(samples))

    return interval_of(product, *(x for xs in samples.values() for x in xs))
