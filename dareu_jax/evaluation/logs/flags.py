"""Signs in a log that a model is broken, so that its scores mean nothing."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from dareu_jax.evaluation.logs.reading import EvalLog, SetLog
from dareu_jax.evaluation.logs.rows import finite_rows, ratios, sides
from dareu_jax.evaluation.metrics.text_quality import (
    has_room,
    is_empty,
    is_repeated,
    words,
)
from dareu_jax.evaluation.metrics.truth_ratio import EPSILON, TruthRatio

Array = np.ndarray
ABOVE = 0.1
"""Share of a set's rows, over that of the reference, from which a sign is told."""
FEW = 8
"""Tokens below which a limit may leave a sound model no room for two words."""
EQUAL = 1e-5
"""Largest spread of values that are called equal, of the largest of them."""
IMPOSSIBLE = 100 * EPSILON
"""Probability below which the 1e-10 in a truth ratio shows."""
SIGNS = {
    "empty": "are empty",
    "short": "are one word where the right answer has more",
    "repeated": "repeat themselves",
    "alike": "are one and the same text",
    "unfinished": "are cut off at the length limit",
}
FORGET = "low ROUGE and attribution say nothing here"
OTHERS = "a broken model, whatever its other scores"


def flags(log: EvalLog, reference: EvalLog | None, kind: TruthRatio) -> list[str]:
    """Return sentences about signs of damage that the reference does not show as well.

    Args:
      log: of the candidate; reference: of the retrained model. Without it the gold
        answers stand in its place, without these an answer without any sign.
    """
    found = []
    for name, one in log.sets.items():
        beside = None if reference is None else reference.sets.get(name)
        found += without_numbers(name, one, beside)
        found += broken_answers(name, one, beside)
        found += collapsed(name, one, beside, kind)
    for name, attack in log.attacks.items():
        if are_equal(np.concatenate(sides(attack))):
            found.append(
                f"all scores of the attack {name} are equal: its AUC and PrivLeak say "
                "nothing"
            )
    return found


def without_numbers(name: str, one: SetLog, beside: SetLog | None) -> list[str]:
    """Return a sentence if many rows of a set have no finite value, or nothing."""
    metric, count = max(one.skipped.items(), key=lambda x: x[1], default=("", 0))
    share = count / len(one.rows)
    usual = 0.0 if beside is None else max(beside.skipped.values(), default=0)
    if beside is not None:
        usual /= len(beside.rows)
    if share <= usual + ABOVE:
        return []
    return [
        f"{percent(share)} of {spelt(name)} rows have no finite value of {metric}: "
        "scores of the others say little about the model"
    ]


# --- texts


def broken_answers(name: str, one: SetLog, beside: SetLog | None) -> list[str]:
    """Return one sentence with every sign of `SIGNS` in a set's answers, or none."""
    right = [text for text in one.gold or () if text is not None]
    gold = text_shares(right, right) if right else {}
    theirs = {} if beside is None else shares(beside)
    shown: list[str] = []
    for sign, share in shares(one).items():
        usual = theirs.get(sign, gold.get(sign, 0.0))
        if share > usual + ABOVE:
            also = f" (the reference's: {percent(usual)})" if sign in theirs else ""
            of = "" if shown else f" of {spelt(name)} answers"
            shown.append(f"{percent(share)}{of} {SIGNS[sign]}{also}")
    says = FORGET if name.startswith("forget") else OTHERS
    return [f"{', '.join(shown)}: {says}"] if shown else []


def shares(one: SetLog) -> dict[str, float]:
    """Return the share of a set's rows with each sign that can be looked for.

    What a limit does is no sign: it may leave no room to end, or for a word or two.
    """
    out = {} if one.generation is None else text_shares(*texts_of(one))
    if is_cut_at_once(one):
        out = {sign: share for sign, share in out.items() if sign == "repeated"}
    if one.unfinished is not None:
        endless = one.unfinished * with_room(one)
        out["unfinished"] = float(finite_rows(endless).mean())
    return out


def with_room(one: SetLog) -> Array:
    """Return ``[N]``, 0 where an answer's limit leaves no room to end, else 1."""
    if one.limit is None or one.gold_tokens is None:
        return np.ones(len(one.rows))
    pairs = zip(one.limit, one.gold_tokens, strict=True)
    return np.asarray([float(np.isnan(x + y) or has_room(x, y)) for x, y in pairs])


def is_cut_at_once(one: SetLog) -> bool:
    """Return whether no answer of a set may have `FEW` tokens."""
    return one.limit is not None and bool(np.nanmax(one.limit) < FEW)


def texts_of(one: SetLog) -> tuple[list[str], list[str] | None]:
    """Return the answers that are there and their gold answers, None without these."""
    said = one.generation or ()
    if one.gold is None:
        return [text for text in said if text is not None], None
    pairs = [(x, y) for x, y in zip(said, one.gold, strict=True) if None not in (x, y)]
    return [str(text) for text, _ in pairs], [str(right) for _, right in pairs]


def text_shares(texts: Sequence[str], gold: Sequence[str] | None) -> dict[str, float]:
    """Return shares of texts: no word, one word, in a loop, and the most frequent.

    One word is a sign where the gold answer has more, so it takes gold answers.
    """
    said = [tuple(words(text)) for text in texts]
    signs = {
        "empty": list(map(is_empty, texts)),
        "repeated": list(map(is_repeated, texts)),
    }
    if gold is not None:
        pairs = zip(said, gold, strict=True)
        signs["short"] = [len(own) == 1 < len(words(right)) for own, right in pairs]
    out = {sign: float(np.mean(rows)) for sign, rows in signs.items()}
    filled = Counter(own for own in said if own)
    most = max(filled.values(), default=0)
    return out | {"alike": most / len(said) if most > 1 else 0.0}


# --- probabilities


def collapsed(
    name: str, one: SetLog, beside: SetLog | None, kind: TruthRatio
) -> list[str]:
    """Return a sentence if all probabilities or truth ratios of a set are useless."""
    out = []
    tiny = np.finfo(np.float64).tiny
    p = None if one.probability is None else finite_rows(one.probability)
    if p is not None and are_equal(np.log(np.maximum(p, tiny))):
        out.append(
            f"all {len(p)} {spelt(name)} probabilities are equal: the model "
            "does not tell one answer from another"
        )
    ratio = ratios(one, kind)
    if ratio is None:
        return out
    if are_equal(ratio):
        out.append(
            f"all {len(ratio)} {spelt(name)} truth ratios are equal: the model does "
            "not tell right answers from wrong ones, their aggregate says nothing"
        )
    usual = 0.0 if beside is None else impossible(beside)
    if (share := impossible(one)) > usual + ABOVE:
        out.append(
            f"{percent(share)} of the right {spelt(name)} answers have a probability "
            f"below {IMPOSSIBLE:.0e}: their truth ratio is made by the 1e-10 in it"
        )
    return out


def are_equal(values: Array) -> bool:
    """Return whether several values are equal up to rounding; False for zeros."""
    return len(values) > 1 and bool(np.ptp(values) < EQUAL * np.abs(values).max())


def impossible(one: SetLog) -> float:
    """Return share of right answers that the model gives next to no probability."""
    if one.right_loss is None:
        return 0.0
    return float((np.exp(-finite_rows(one.right_loss)) < IMPOSSIBLE).mean())


def percent(share: float) -> str:
    """Return a share in whole percent."""
    return f"{100 * share:.0f} %"


def spelt(name: str) -> str:
    """Return a set's name in words."""
    return name.replace("_", " ")
