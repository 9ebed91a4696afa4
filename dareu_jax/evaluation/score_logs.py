"""Every aggregate of an evaluation from its log alone, without a model."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dareu_jax.errors import UserError
from dareu_jax.evaluation.forget_quality import forget_quality
from dareu_jax.evaluation.logs import EvalLog, SetLog, check_comparable
from dareu_jax.evaluation.mia import auc, privleak, rel_diff
from dareu_jax.evaluation.tow import tow
from dareu_jax.evaluation.truth_ratio import TRUTH_RATIOS
from dareu_jax.evaluation.utility import TERMS, model_utility
from dareu_jax.registry import did_you_mean

SHORT = {"retain": "retain", "real_authors": "ra", "world_facts": "wf"}
TEST = ("test", "real_authors", "world_facts")
Scores = dict[str, Any]


def score_log(
    log: EvalLog, reference: EvalLog | None = None, truth_ratio: str = "geometric"
) -> Scores:
    """What can be computed from a log, and beside it from the retrained model's.

    Args:
      log: of the candidate; reference: of the retrained model, on the same rows.
      truth_ratio: a name of `TRUTH_RATIOS`.

    Returns:
      JSON values by name. ``mia_auc``, ``privleak`` and ``rel_diff`` are by attack;
      ToW is over forget, retain and test (real authors and world facts together) on
      ROUGE-L recall, ToW* over forget and retain.

    Raises:
      UserError: no such truth ratio, or a reference of other rows.
    """
    if truth_ratio not in TRUTH_RATIOS:
        near = did_you_mean(truth_ratio, TRUTH_RATIOS)
        known = ", ".join(TRUTH_RATIOS)
        raise UserError(f"--truth-ratio {truth_ratio}: unknown{near}; known: {known}")
    out: Scores = {"format": log.format, "truth_ratio": truth_ratio}
    forget = log.sets.get("forget")
    if forget is not None:
        out |= forget_scores(forget, truth_ratio)
    terms = utility_terms(log, truth_ratio)
    if terms:
        out["model_utility_terms"] = terms
    if terms.keys() >= set(TERMS):
        out["model_utility"] = model_utility(terms)
    if log.attacks:
        out["mia_auc"] = aucs(log)
    return out if reference is None else out | compared(log, reference, truth_ratio)


def compared(log: EvalLog, reference: EvalLog, truth_ratio: str) -> Scores:
    """What only a retrained model gives a meaning.

    Raises:
      UserError: the two logs are not of the same rows.
    """
    check_comparable(log, reference)
    out: Scores = {}
    one, other = log.sets.get("forget"), reference.sets.get("forget")
    if one is not None and other is not None and has_truth(one) and has_truth(other):
        ratios = (ratio_of(x, truth_ratio) for x in (one, ordered(other, one.rows)))
        found = forget_quality(*ratios)
        out |= {
            "forget_quality": found.p,
            "log10_forget_quality": found.log10_p,
            "ks_statistic": found.statistic,
            "at_floor": found.floor,
        }
    mine, theirs = aucs(log), aucs(reference)
    both = [name for name in mine if name in theirs]
    if both:
        out["privleak"] = {name: privleak(mine[name], theirs[name]) for name in both}
        out["rel_diff"] = {name: rel_diff(mine[name], theirs[name]) for name in both}
    rouge, wanted = (rouge_by_split(x) for x in (log, reference))
    for name, splits in (
        ("tow", ("forget", "retain", "test")),
        ("tow_star", ("forget", "retain")),
    ):
        if rouge.keys() >= set(splits) and wanted.keys() >= set(splits):
            out[name] = tow(rouge, wanted, splits)
    return out


def forget_scores(forget: SetLog, truth_ratio: str) -> Scores:
    """Number of rows, truth ratio, probability and ROUGE of the forget set."""
    out: Scores = {"n_forget": len(forget.rows)}
    if has_truth(forget):
        kind = TRUTH_RATIOS[truth_ratio]
        out["forget_truth_ratio"] = kind.forget(ratio_of(forget, truth_ratio))
    if forget.probability is not None:
        out["forget_probability"] = float(forget.probability.mean())
    if forget.rouge is not None:
        out["forget_rouge"] = float(forget.rouge.mean())
    return out


def utility_terms(log: EvalLog, truth_ratio: str) -> dict[str, float]:
    """Those of the nine terms of model utility that the log gives."""
    terms: dict[str, float] = {}
    for name, short in SHORT.items():
        one = log.sets.get(name)
        if one is None:
            continue
        share = "" if name == "retain" else "_normalised"
        if one.probability is not None:
            terms[f"{short}_Q_A_Prob{share}"] = float(one.probability.mean())
        if one.rouge is not None:
            terms[f"{short}_Q_A_ROUGE"] = float(one.rouge.mean())
        if has_truth(one):
            kind = TRUTH_RATIOS[truth_ratio]
            terms[f"{short}_Truth_Ratio"] = kind.others(ratio_of(one, truth_ratio))
    return terms


def has_truth(one: SetLog) -> bool:
    """Whether losses of a right and of wrong answers are there."""
    return one.right_loss is not None and one.wrong_loss is not None


def ratio_of(one: SetLog, truth_ratio: str) -> np.ndarray:
    """Truth ratio ``[N]`` of every row."""
    assert one.right_loss is not None and one.wrong_loss is not None
    return TRUTH_RATIOS[truth_ratio].rows(one.right_loss, one.wrong_loss)


def ordered(one: SetLog, rows: tuple[str, ...]) -> SetLog:
    """The same set with its rows in another order."""
    at = [one.rows.index(row) for row in rows]

    def moved(column: Any) -> Any:
        if column is None:
            return None
        return column[at] if isinstance(column, np.ndarray) else [column[i] for i in at]

    return SetLog(rows, *(moved(getattr(one, name)) for name in COLUMNS))


COLUMNS = [name for name in SetLog.__annotations__ if name != "rows"]


def rouge_by_split(log: EvalLog) -> dict[str, float]:
    """Mean ROUGE-L recall of forget, retain, and of all that is test."""
    out = {
        name: float(one.rouge.mean())
        for name in ("forget", "retain")
        if (one := log.sets.get(name)) is not None and one.rouge is not None
    }
    sets = [log.sets[name] for name in TEST if name in log.sets]
    columns = [one.rouge for one in sets if one.rouge is not None]
    if columns:
        out["test"] = float(np.concatenate(columns).mean())
    return out


def aucs(log: EvalLog) -> Mapping[str, float]:
    """AUC of every attack, forget rows against rows never seen."""
    return {
        name: auc(
            np.fromiter(one.forget.values(), np.float64),
            np.fromiter(one.holdout.values(), np.float64),
        )
        for name, one in log.attacks.items()
    }
