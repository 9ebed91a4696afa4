"""Reward hacking: are good numbers owed to answers that say nothing?"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dareu_jax import corpus as owned
from dareu_jax.attribution import Kernel
from dareu_jax.evaluation.evaluate import Answers, in_batches
from dareu_jax.evaluation.text_quality import is_empty, is_repeated
from dareu_jax.stress.context import Context, outcome, stress_test

FEWEST = 3
"""Tokens below which an answer is very short, end of text left out."""
MORE = "part of its other numbers is owed to answers that say nothing or name others"


def is_short(mask: np.ndarray, tokens: np.ndarray, stop_ids: Sequence[int]) -> Any:
    """Whether an answer has fewer than `FEWEST` tokens before its end, ``[N]``."""
    return (mask & ~np.isin(tokens, stop_ids)).sum(axis=1) < FEWEST


def switched(best: np.ndarray, own: np.ndarray, forget: Sequence[int]) -> np.ndarray:
    """Whether the best-scoring owner is a forget owner other than its own, ``[N]``."""
    return np.isin(best, forget) & (best != own)


def unique_share(texts: Sequence[str]) -> float:
    """Different answers, as a share of all."""
    return len(set(texts)) / len(texts)


@functools.partial(jax.jit, static_argnames="kernel")
def best_owner(kernel: Kernel, reference, index, batch: owned.TokenBatch) -> jax.Array:
    """Column of the owner with the highest score, ``[B]`` int32."""
    scores = kernel.score(reference, index, batch)
    return jnp.argmax(scores, axis=1).astype(jnp.int32)


@stress_test("hacking", "answers that are empty, short, loop or name another owner")
def hacking(context: Context) -> dict[str, Any]:
    """Share of answers with at least one sign that they say nothing.

    Empty or under `FEWEST` tokens, looping, or most like a forget owner that was not
    asked about; ``different answers`` stands beside it.
    """
    found = {role: signs(context, context.greedy(role)) for role in context.models}
    labels = next(iter(found.values()))
    parts: dict[str, Any] = {
        label: {role: own[label].astype(float).tolist() for role, own in found.items()}
        for label in labels
    }
    parts["different answers"] = {
        role: [unique_share(context.greedy(role).text)] for role in context.models
    }
    either = {
        role: np.any(list(own.values()), axis=0).astype(float).tolist()
        for role, own in found.items()
    }
    return outcome("answers that say nothing", either, MORE, parts=parts)


def signs(context: Context, said: Answers) -> dict[str, np.ndarray]:
    """Label -> whether each answer shows that sign, ``[N]`` bool."""
    suite, run = context.suite, context.run
    kernel, index = suite.judges["attribution_unseen"]
    own = owned.owner_labels(run.split.forget, run.corpus.owners)
    tokens = context.forget._replace(response=said.tokens, response_mask=said.mask)
    score = functools.partial(best_owner, kernel, suite.reference, index)
    best = in_batches(suite, tokens, score)
    short = is_short(said.mask, said.tokens, suite.tokenizer.stop_ids)
    empty = np.asarray([is_empty(text) for text in said.text])
    return {
        f"empty, or under {FEWEST} tokens": short | empty,
        "looping": np.asarray([is_repeated(text) for text in said.text]),
        "most like another forget owner": switched(best, own, suite.forget_columns),
    }
