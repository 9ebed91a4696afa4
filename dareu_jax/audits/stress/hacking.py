"""Reward hacking: are good numbers owed to answers that say nothing?"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dareu_jax import data
from dareu_jax.attribution import Kernel
from dareu_jax.audits.stress.broken import text_signs
from dareu_jax.audits.stress.context import Context, outcome, stress_test
from dareu_jax.evaluation.run_suite import in_batches

MORE = "part of its other numbers is owed to answers that say nothing or name others"


def switched(best: np.ndarray, own: np.ndarray, forget: Sequence[int]) -> np.ndarray:
    """Whether the best-scoring owner is a forget owner other than its own, ``[N]``."""
    return np.isin(best, forget) & (best != own)


def unique_share(texts: Sequence[str]) -> float:
    """Different answers, as a share of all."""
    return len(set(texts)) / len(texts)


@functools.partial(jax.jit, static_argnames="kernel")
def best_owner(kernel: Kernel, reference, index, batch: data.TokenBatch) -> jax.Array:
    """Column of the owner with the highest score, ``[B]`` int32."""
    scores = kernel.score(reference, index, batch)
    return jnp.argmax(scores, axis=1).astype(jnp.int32)


@stress_test("hacking", "answers that are empty, short, loop or name another owner")
def hacking(context: Context) -> dict[str, Any]:
    """Share of answers with at least one sign that they say nothing.

    Empty or very short, looping (`text_signs`), or most like a forget owner that was
    not asked about; ``different answers`` stands beside it.
    """
    found = {role: signs(context, role) for role in context.models}
    parts: dict[str, Any] = {
        label: {role: own[label].astype(float).tolist() for role, own in found.items()}
        for label in found["original"]
    }
    parts["different answers"] = {
        role: [unique_share(context.greedy(role).text)] for role in context.models
    }
    either = {
        role: np.any(list(own.values()), axis=0).astype(float).tolist()
        for role, own in found.items()
    }
    return outcome("answers that say nothing", either, MORE, parts=parts)


def signs(context: Context, role: str) -> dict[str, np.ndarray]:
    """Label -> whether each answer shows that sign, ``[N]`` bool."""
    suite, run = context.suite, context.run
    kernel, index = suite.judges["attribution_unseen"]
    own = data.owner_labels(run.inputs.split.forget, run.inputs.corpus.owners)
    score = functools.partial(best_owner, kernel, suite.reference, index)
    best = in_batches(suite, context.said(role), score, per_token=False)
    return {
        **text_signs(context.greedy(role), suite.tokenizer.stop_ids),
        "most like another forget owner": switched(best, own, suite.forget_columns),
    }
