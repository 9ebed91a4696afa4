"""Every aggregate of an evaluation, computed from the rows of its log."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dareu_jax.errors import UserError, did_you_mean
from dareu_jax.evaluation.logs.flags import flags
from dareu_jax.evaluation.logs.reading import EvalLog, SetLog, check_comparable
from dareu_jax.evaluation.logs.rows import (
    finite_rows,
    ratios,
    shared_ratios,
    sides,
    tug_rows,
    tug_scores,
)
from dareu_jax.evaluation.metrics.forget_quality import forget_quality
from dareu_jax.evaluation.metrics.mia import auc, privleak, rel_diff
from dareu_jax.evaluation.metrics.rouge import rouge_l_recall
from dareu_jax.evaluation.metrics.tow import TUGS, tow
from dareu_jax.evaluation.metrics.truth_ratio import TRUTH_RATIOS, TruthRatio
from dareu_jax.evaluation.metrics.utility import TERMS, model_utility

Scores = dict[str, Any]
SETS = ("forget", "forget_paraphrased", "retain", "real_authors", "world_facts", "test")
TERM_SETS = ("retain", "real_authors", "world_facts")
MEASURES = ("probability", "rouge", "truth_ratio")
SAME = 1e-9  # between a stored ROUGE and the same one computed again


def score(
    log: EvalLog,
    reference: EvalLog | None = None,
    truth_ratio: str | None = None,
    partial: bool = False,
) -> Scores:
    """Return every aggregate, and with a reference every comparison; None: missing.

    Args:
      log: of the candidate; reference: of the model retrained without the forget set.
      truth_ratio: of `TRUTH_RATIOS`; None: geometric, where the log has the losses.
      partial: what one of the logs lacks becomes None.

    Raises:
      UserError: logs of other rows, or without what a comparison needs.
    """
    kind = truth_ratio_named(truth_ratio or "geometric")
    if truth_ratio is not None:
        needs_losses(log)
    alone = score_alone(log, kind) | {
        "truth_ratio": truth_ratio or "geometric",
        "flags": flags(log, None if reference is log else reference, kind),
    }
    if reference is None:
        return alone | dict.fromkeys(COMPARISONS)
    check_comparable(log, reference)
    if not partial:
        check_asked(log, reference)
    return alone | compare(log, reference, kind)


def truth_ratio_named(name: str) -> TruthRatio:
    """Return the definition; raises `UserError` that lists the known ones."""
    if name not in TRUTH_RATIOS:
        near, known = did_you_mean(name, TRUTH_RATIOS), ", ".join(TRUTH_RATIOS)
        raise UserError(f"unknown truth ratio {name!r}{near}; known: {known}")
    return TRUTH_RATIOS[name]


def needs_losses(log: EvalLog) -> None:
    """Raise `UserError` where no set has the losses of a truth ratio."""
    if all(ratios(one, TRUTH_RATIOS["geometric"]) is None for one in log.sets.values()):
        raise UserError(f"{log.path} has no losses of wrong answers for a truth ratio")


def check_asked(log: EvalLog, reference: EvalLog) -> None:
    """Raise `UserError` where one log lacks what the other has of the forget set."""
    if not (log.sets or reference.sets):  # attacks alone
        return
    for one in (log, reference):
        if "forget" not in one.sets:
            raise UserError(f"{one.path} has no forget rows to compare ({one.format})")
    for one, other in ((log, reference), (reference, log)):
        if one.sets["forget"].wrong_loss is not None:
            needs_losses(other)


# --- one log


def set_means(name: str, one: SetLog, kind: TruthRatio) -> Scores:
    """Return number of rows, mean probability and ROUGE, and the truth ratio."""
    combine, ratio = kind.forget if name == "forget" else kind.others, ratios(one, kind)
    return {
        "n": len(one.rows),
        "probability": mean_or_none(one.probability),
        "rouge": mean_or_none(one.rouge),
        "truth_ratio": None if ratio is None else combine(ratio),
    }


def mean_or_none(values: np.ndarray | None) -> float | None:
    """Return the mean of the rows of ``[N]`` that have a value, None without any."""
    return None if values is None else float(finite_rows(values).mean())


def score_alone(log: EvalLog, kind: TruthRatio) -> Scores:
    """Return the scores that need no reference."""
    sets = {k: set_means(k, log.sets[k], kind) for k in SETS if k in log.sets}
    forget, terms = sets.get("forget", {}), utility_terms(sets)
    return {
        "format": log.format,
        "n_forget": forget.get("n"),
        **{f"forget_{measure}": forget.get(measure) for measure in MEASURES},
        "model_utility": model_utility(terms) if len(terms) == len(TERMS) else None,
        "model_utility_terms": terms,
        "sets": sets,
        "mia_auc": attack_aucs(log),
        "extraction_strength": mean_or_none(log.extraction),
        "skipped": {name: dict(counts) for name, counts in log.skipped.items()},
    }


def utility_terms(sets: Mapping[str, Scores]) -> dict[str, float]:
    """Return those of the nine terms of model utility that are there."""
    found = [sets.get(name, {}).get(x) for name in TERM_SETS for x in MEASURES]
    named = zip(TERMS, found, strict=True)
    return {term: value for term, value in named if value is not None}


def attack_aucs(log: EvalLog) -> dict[str, float]:
    """Return AUC by attack."""
    return {name: auc(*sides(attack)) for name, attack in log.attacks.items()}


# --- two logs

COMPARISONS = (
    "forget_quality",
    "log10_forget_quality",
    "ks_statistic",
    "at_floor",
    *TUGS,
    "privleak",
    "privleak_by_attack",
    "rel_diff_by_attack",
)
RETRAININGS = {f"{name}_of_retrainings": name for name in COMPARISONS[:3]}
"""Names of `quality_of_retrainings`, and what it is of two other models."""


def compare(log: EvalLog, reference: EvalLog, kind: TruthRatio) -> Scores:
    """Return forget quality, ToW and PrivLeak against the retrained model's log."""
    ours, theirs = attack_aucs(log), attack_aucs(reference)
    shared = [name for name in ours if name in theirs]
    leaks = {name: privleak(ours[name], theirs[name]) for name in shared}
    rows = {name: tug_rows(log, reference, name) for name in TUGS}
    tugs = {
        name: tow(tug_scores(x[0]), tug_scores(x[1]), TUGS[name][1]) if x else None
        for name, x in rows.items()
    }
    return quality(log, reference, kind) | {
        **tugs,
        "privleak": leaks.get("min_k"),
        "privleak_by_attack": leaks,
        "rel_diff_by_attack": {k: rel_diff(ours[k], theirs[k]) for k in shared},
    }


def quality(log: EvalLog, reference: EvalLog, kind: TruthRatio) -> Scores:
    """Return forget quality, where both logs have truth ratios of the forget set."""
    names = COMPARISONS[:4]
    ours, theirs = (one.sets.get("forget") for one in (log, reference))
    both = shared_ratios(ours, theirs, kind) if ours and theirs else None
    if both is None:
        return dict.fromkeys(names)
    return dict(zip(names, forget_quality(*both), strict=True))


def quality_of_retrainings(one: EvalLog, other: EvalLog, kind: TruthRatio) -> Scores:
    """Return p, its logarithm and D of two models retrained alike but for the seed."""
    check_comparable(other, one)
    check_asked(other, one)
    found = quality(one, other, kind)
    if found["forget_quality"] is None:
        needs_losses(other)
    return {name: found[of] for name, of in RETRAININGS.items()}


# --- under the names of metrics

PLAIN = (
    *(name for new, of in RETRAININGS.items() for name in (of, new)),
    *TUGS,
    "model_utility",
)
BY_ATTACK = {
    "mia_auc": "mia_auc",
    "privleak": "privleak_by_attack",
    "rel_diff": "rel_diff_by_attack",
}


def by_metric(tree: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return every score, or interval: metric -> attack, or "", -> value."""
    found = {name: {"": tree.get(name)} for name in PLAIN}
    for name, measures in tree["sets"].items():
        found |= {f"{name}_{k}": {"": measures.get(k)} for k in MEASURES}
    found["extraction_strength"] = {"": tree.get("extraction_strength")}
    found |= {name: dict(tree.get(key) or {}) for name, key in BY_ATTACK.items()}
    there = {
        name: {attack: x for attack, x in values.items() if x is not None}
        for name, values in found.items()
    }
    return {name: values for name, values in there.items() if values}


# --- texts


def check_rouge(log: EvalLog) -> int:
    """Compute ROUGE-L recall of every stored answer again; return how many.

    Raises:
      UserError: the first stored value that is another, or a log without texts.
    """
    count = 0
    for name, one in log.sets.items():
        if one.rouge is None or one.generation is None or one.gold is None:
            continue
        table = zip(one.rows, one.rouge, one.generation, one.gold, strict=True)
        for row, stored, said, right in table:
            if np.isnan(stored) or said is None or right is None:
                continue
            (value,) = rouge_l_recall([said], [right])
            if abs(stored - value) > SAME:
                raise UserError(
                    f"{log.path}: {name}, row {row!r} has ROUGE-L recall {stored:.6f}, "
                    f"its answer has {value:.6f}"
                )
            count += 1
    if not count:
        raise UserError(f"{log.path} has no gold answers, --check-rouge needs them")
    return count
