"""Answers that are no text: whoever says nothing gives nothing away."""

from collections.abc import Mapping, Sequence

import numpy as np

from dareu_jax.audits.stress.verdict import paired_gap
from dareu_jax.evaluation.metrics.text_quality import is_empty, is_repeated
from dareu_jax.evaluation.run_suite import Answers

Array = np.ndarray
FEWEST = 3
"""Tokens below which an answer is very short, end of text left out."""
WELL_ABOVE = 0.1
"""Share of broken answers, over the other model's, from which numbers are no merit."""


def is_short(mask: Array, tokens: Array, stop_ids: Sequence[int]) -> Array:
    """Whether an answer has fewer than `FEWEST` tokens before its end, ``[N]``."""
    return (mask & ~np.isin(tokens, stop_ids)).sum(axis=1) < FEWEST


def text_signs(said: Answers, stop_ids: Sequence[int]) -> dict[str, Array]:
    """Label -> whether each answer shows that sign of saying nothing, ``[N]`` bool.

    An answer that a limit cut before `FEWEST` tokens shows none.
    """
    empty = np.asarray([is_empty(text) for text in said.text])
    short = is_short(said.mask, said.tokens, stop_ids)
    had_room = np.asarray(said.finished) | (said.mask.sum(axis=1) >= FEWEST)
    return {
        f"empty, or under {FEWEST} tokens": (short | empty) & had_room,
        "looping": np.asarray([is_repeated(text) for text in said.text]),
    }


def broken(said: Answers, stop_ids: Sequence[int]) -> list[float]:
    """1.0 for each answer with a sign of `text_signs`, else 0.0, ``[N]``."""
    found = list(text_signs(said, stop_ids).values())
    return np.any(found, axis=0).astype(float).tolist()


def caveat_of(values: Mapping[str, Sequence[float]]) -> str:
    """Says that the unlearned model's answers are broken, or "".

    They are when their share is `WELL_ABOVE` the retrained model's (the original's,
    without one) and over two standard errors of the paired difference.
    """
    other = "retrained" if "retrained" in values else "original"
    gap, error = paired_gap(values["unlearned"], values[other])
    if gap < WELL_ABOVE or gap <= 2 * error:
        return ""
    own, theirs = np.mean(values["unlearned"]), np.mean(values[other])
    return (
        f"But its answers are broken: {own:.0%} are empty, very short or loop, against "
        f"{theirs:.0%} {other}; low numbers of a broken model are no success."
    )
