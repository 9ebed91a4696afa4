"""Perplexity of texts."""

from typing import NamedTuple

import numpy as np

from dareu_jax.evaluation.metrics.rows import finite, tokens_of


class Perplexity(NamedTuple):
    """``total`` of all tokens together, ``rows [B]`` of every row alone."""

    total: float
    rows: np.ndarray


def perplexity(logps: np.ndarray, mask: np.ndarray) -> Perplexity:
    """Return exp(total nll / total tokens), and exp(mean nll) per row; 1 is the least.

    Long rows weigh more in the total, which is not the mean of the rows.

    Raises:
      UserError: a row has no token, a log-probability is not finite, or a perplexity
        is too large for a float.
    """
    values, count = tokens_of("perplexity", logps, mask)
    nll = -values.sum(axis=1)
    with np.errstate(over="ignore"):
        total, rows = np.exp(nll.sum() / count.sum()), np.exp(nll / count)
    return Perplexity(float(total), finite("perplexity", rows))
