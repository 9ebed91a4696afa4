"""Every aggregate of an evaluation from its rows alone; no model."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dareu_jax.errors import UserError
from dareu_jax.evaluation.forget_quality import forget_quality
from dareu_jax.evaluation.logs import EvalLog, SetLog, check_comparable
from dareu_jax.evaluation.mia import auc, privleak, rel_diff
from dareu_jax.evaluation.rouge import rouge_l_recall
from dareu_jax.evaluation.tow import SPLITS, tow
from dareu_jax.evaluation.truth_ratio import TRUTH_RATIOS, TruthRatio
from dareu_jax.evaluation.utility import TERMS, model_utility
from dareu_jax.registry import did_you_mean

Scores = dict[str, Any]
SETS = ("forget", "retain", "real_authors", "world_facts", "test")
TERM_SETS = ("retain", "real_authors", "world_facts")
MEASURES = ("probability", "rouge", "truth_ratio")
TEST_SETS = ("real_authors", "world_facts")
SAME = 1e-9  # between a stored ROUGE and the same one computed again


def score(
    log: EvalLog,
    reference: EvalLog | None = None,
    truth_ratio: str | None = None,
    partial: bool = False,
) -> Scores:
    """Every aggregate, and with a reference every comparison; None: not computable.

    Args:
      log: of the candidate; reference: of the model retrained without the forget set.
      truth_ratio: of `TRUTH_RATIOS`; None: geometric, where the log has the losses.
      partial: what one of the logs lacks becomes None.

    Returns:
      `score_alone` and the `COMPARISONS`.

    Raises:
      UserError: logs of other rows, or without what a comparison needs.
    """
    kind = truth_ratio_named(truth_ratio or "geometric")
    if truth_ratio is not None:
        needs_losses(log)
    alone = score_alone(log, kind) | {"truth_ratio": truth_ratio or "geometric"}
    if reference is None:
        return alone | dict.fromkeys(COMPARISONS)
    check_comparable(log, reference)
    if not partial:
        check_asked(log, reference)
    return alone | compare(log, reference, kind)


def truth_ratio_named(name: str) -> TruthRatio:
    """The definition; raises `UserError` that lists the known ones."""
    if name not in TRUTH_RATIOS:
        near, known = did_you_mean(name, TRUTH_RATIOS), ", ".join(TRUTH_RATIOS)
        raise UserError(f"unknown truth ratio {name!r}{near}; known: {known}")
    return TRUTH_RATIOS[name]


def needs_losses(log: EvalLog) -> None:
    """Raises `UserError` where no set has the losses of a truth ratio."""
    if all(ratios(one, TRUTH_RATIOS["geometric"]) is None for one in log.sets.values()):
        raise UserError(f"{log.path} has no losses of wrong answers for a truth ratio")


def check_asked(log: EvalLog, reference: EvalLog) -> None:
    """Raises `UserError` where one log lacks what the other has of the forget set."""
    if not (log.sets or reference.sets):  # attacks alone
        return
    for one in (log, reference):
        if "forget" not in one.sets:
            raise UserError(f"{one.path} has no forget rows to compare ({one.format})")
    for one, other in ((log, reference), (reference, log)):
        if one.sets["forget"].wrong_loss is not None:
            needs_losses(other)


# --- one log


def ratios(one: SetLog, kind: TruthRatio) -> np.ndarray | None:
    """Truth ratio of every row ``[N]``."""
    if one.right_loss is None or one.wrong_loss is None:
        return None
    return kind.rows(one.right_loss, one.wrong_loss)


def set_means(name: str, one: SetLog, kind: TruthRatio) -> Scores:
    """Number of rows, mean probability and ROUGE, aggregate of the truth ratio."""
    ratio = ratios(one, kind)
    combine = kind.forget if name == "forget" else kind.others
    return {
        "n": len(one.rows),
        "probability": mean_or_none(one.probability),
        "rouge": mean_or_none(one.rouge),
        "truth_ratio": None if ratio is None else combine(ratio),
    }


def mean_or_none(values: np.ndarray | None) -> float | None:
    """The mean of ``[N]``, or None where there are none."""
    return None if values is None else float(values.mean())


def score_alone(log: EvalLog, kind: TruthRatio) -> Scores:
    """What needs no reference."""
    sets = {k: set_means(k, log.sets[k], kind) for k in SETS if k in log.sets}
    forget = sets.get("forget", {})
    terms = utility_terms(sets)
    return {
        "format": log.format,
        "n_forget": forget.get("n"),
        "forget_probability": forget.get("probability"),
        "forget_rouge": forget.get("rouge"),
        "forget_truth_ratio": forget.get("truth_ratio"),
        "model_utility": model_utility(terms) if len(terms) == len(TERMS) else None,
        "model_utility_terms": terms,
        "sets": sets,
        "mia_auc": attack_aucs(log),
    }


def utility_terms(sets: Mapping[str, Scores]) -> dict[str, float]:
    """Those of the nine terms of model utility that are there."""
    places = [(name, measure) for name in TERM_SETS for measure in MEASURES]
    named = zip(TERMS, places, strict=True)
    found = {term: sets.get(k, {}).get(measure) for term, (k, measure) in named}
    return {term: x for term, x in found.items() if x is not None}


def attack_aucs(log: EvalLog) -> dict[str, float]:
    """AUC by attack."""
    return {
        name: auc(
            np.asarray([*attack.forget.values()]),
            np.asarray([*attack.holdout.values()]),
        )
        for name, attack in log.attacks.items()
    }


# --- two logs

COMPARISONS = (
    *("forget_quality", "log10_forget_quality", "ks_statistic", "at_floor"),
    *("tow", "tow_star", "privleak", "privleak_by_attack", "rel_diff_by_attack"),
)


def compare(log: EvalLog, reference: EvalLog, kind: TruthRatio) -> Scores:
    """Forget quality, ToW and PrivLeak against the retrained model's log."""
    ours, theirs = attack_aucs(log), attack_aucs(reference)
    shared = [name for name in ours if name in theirs]
    leaks = {name: privleak(ours[name], theirs[name]) for name in shared}
    found = quality(log, reference, kind) | tug_of_war(log, reference)
    return found | {
        "privleak": leaks.get("min_k"),
        "privleak_by_attack": leaks,
        "rel_diff_by_attack": {k: rel_diff(ours[k], theirs[k]) for k in shared},
    }


def quality(log: EvalLog, reference: EvalLog, kind: TruthRatio) -> Scores:
    """Forget quality, where both logs have truth ratios of the forget set."""
    names = COMPARISONS[:4]
    sets = [one.sets.get("forget") for one in (log, reference)]
    ours, theirs = (None if one is None else ratios(one, kind) for one in sets)
    if ours is None or theirs is None:
        return dict.fromkeys(names)
    return dict(zip(names, forget_quality(ours, theirs), strict=True))


def tug_of_war(log: EvalLog, reference: EvalLog) -> Scores:
    """ToW on ROUGE-L recall, ToW* without the test set; None where a set lacks.

    The test set of TOFU: real authors and world facts, all rows alike.
    """
    ours, theirs = recall_by_split(log), recall_by_split(reference)
    common = ours.keys() & theirs.keys()
    return {
        name: tow(ours, theirs, splits) if common.issuperset(splits) else None
        for name, splits in (("tow", SPLITS), ("tow_star", SPLITS[:2]))
    }


def recall_by_split(log: EvalLog) -> dict[str, float]:
    """Mean ROUGE-L recall on forget, retain, test, where the log has them."""
    means = {}
    for split in SPLITS:
        pooled = split == "test" and split not in log.sets
        sets = [log.sets.get(k) for k in (TEST_SETS if pooled else (split,))]
        parts = [one.rouge for one in sets if one is not None and one.rouge is not None]
        if len(parts) == len(sets):
            means[split] = float(np.concatenate(parts).mean())
    return means


# --- texts


def check_rouge(log: EvalLog) -> int:
    """Computes ROUGE-L recall of every stored answer again; returns how many.

    Raises:
      UserError: the first stored value that is another, or a log without texts.
    """
    count = 0
    for name, one in log.sets.items():
        if one.rouge is None or one.generation is None or one.gold is None:
            continue
        again = rouge_l_recall(one.generation, one.gold)
        for row, stored, value in zip(one.rows, one.rouge, again, strict=True):
            if abs(stored - value) > SAME:
                raise UserError(
                    f"{log.path}: {name}, row {row!r} has ROUGE-L recall {stored:.6f}, "
                    f"its answer has {value:.6f}"
                )
        count += len(again)
    if not count:
        raise UserError(f"{log.path} has no gold answers, --check-rouge needs them")
    return count
