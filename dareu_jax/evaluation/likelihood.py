"""Perplexity, and the losses and probabilities of several answers to one question."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dareu_jax.corpus import TokenBatch
from dareu_jax.evaluation.rows import finite, tokens_of
from dareu_jax.models import Decoder, response_logps


class Perplexity(NamedTuple):
    """``total`` of all tokens together, ``rows [B]`` of every row alone."""

    total: float
    rows: np.ndarray


def perplexity(logps: np.ndarray, mask: np.ndarray) -> Perplexity:
    """exp(total nll / total tokens), and exp(mean nll) per row; 1 is the least.

    Long rows weigh more in the total, which is not the mean of the rows.

    Args:
      logps: ``[B, T]`` of `TokenStats`, nats; mask: ``[B, T]`` bool.

    Raises:
      UserError: a row has no token, a log-probability is not finite, or a perplexity
        is too large for a float.
    """
    values, count = tokens_of("perplexity", logps, mask)
    nll = -values.sum(axis=1)
    with np.errstate(over="ignore"):
        total, rows = np.exp(nll.sum() / count.sum()), np.exp(nll / count)
    return Perplexity(float(total), finite("perplexity", rows))


def four_answer_probability(right: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """right / (right + sum_a wrong_a + 1e-10) ``[B]``, in [0, 1).

    Args:
      right: ``[B]``, wrong: ``[B, A]``, length-normalised probabilities
        exp(-mean token loss); A is 3 in TOFU's real authors and world facts.

    Raises:
      UserError: a probability is not finite; its index is named.
      ValueError: one lies outside [0, 1], or the shapes do not fit.

    Source: Maini et al. (2024, arXiv 2401.06121).
    """
    right, wrong = finite("right answers", right), finite("wrong answers", wrong)
    if wrong.ndim != 2 or right.shape != wrong.shape[:1]:
        raise ValueError(f"right answers {right.shape}, wrong ones {wrong.shape}")
    for what, values in (("right", right), ("wrong", wrong)):
        if values.min() < 0.0 or values.max() > 1.0:
            raise ValueError(
                f"{what} answers: probabilities from {values.min()} to {values.max()} "
                "are not in [0, 1]"
            )
    return right / (right + wrong.sum(axis=1) + 1e-10)


@functools.partial(jax.jit, static_argnames="model")
def mean_loss(model: Decoder, params: Any, batch: TokenBatch) -> jax.Array:
    """-1/|a| sum_t log p(a_t | q, a_<t) ``[B]`` float32, end of text included.

    An answer without a token gives NaN.
    """
    logps = response_logps(model, params, batch)
    count = jnp.sum(batch.response_mask.astype(jnp.float32), axis=1)
    return -jnp.sum(logps, axis=1) / count


def answer_losses(
    model: Decoder, params: Any, batches: Sequence[TokenBatch]
) -> jax.Array:
    """`mean_loss` of A answers to each of B questions, ``[B, A]`` float32.

    exp(-loss) is the length-normalised probability that TOFU's truth ratio and
    `four_answer_probability` read.

    Args:
      model, params: the decoder.
      batches: A batches of the same B prompts in the same order, one per answer.

    Raises:
      ValueError: there is no batch, or they have different numbers of rows.
    """
    if len({len(batch.response) for batch in batches}) != 1:
        rows = [len(batch.response) for batch in batches]
        raise ValueError(f"answers of one set of questions have {rows} rows")
    return jnp.stack([mean_loss(model, params, batch) for batch in batches], axis=1)
