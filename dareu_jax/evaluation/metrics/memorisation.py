"""How much of a text a model can still say word for word."""

import numpy as np

from dareu_jax.evaluation.metrics.metric import Metric, declare
from dareu_jax.evaluation.metrics.rows import means_of, tokens_of

Array = np.ndarray

declare(
    Metric(
        name="extraction_strength",
        label="extraction strength",
        direction="closer",
        about="Mean share of a forget answer, its end, that greedy decoding says word "
        "for word from what stands before.",
        of=("log",),
    )
)


def exact_memorisation(hits: Array, mask: Array) -> Array:
    """Return 1/T sum_t [y_t = argmax p(. | q, y_<t)] ``[B]``, teacher-forced.

    Every token in the mask counts, the end of text too; open-unlearning leaves a
    response's last token out, here and in `extraction_strength`: give the mask
    without it to have its numbers.

    Args:
      hits: ``[B, T]`` of `TokenStats`; mask: ``[B, T]`` bool.

    Raises:
      UserError: a row has no token, or a hit is NaN.

    Source: Tirumala et al. (2022, arXiv 2205.10770).
    """
    return means_of("exact memorisation", hits, mask)


def extraction_strength(hits: Array, mask: Array) -> Array:
    """Return 1 - k/T ``[B]``: k tokens are the shortest prefix that gives the rest.

    From k gold tokens greedy decoding says the rest of the gold text if and only if
    every later token is the argmax after the gold tokens before it. One teacher-forced
    pass therefore gives k, the place of the last miss, 0 without one.

    1 is a text that the prompt alone extracts, 0 one whose last token is missed. The
    code of open-unlearning tries k < T only: it has 1/T in the place of 0.

    Source: Carlini et al. (2021, arXiv 2012.07805), and for unlearning Wang et al.
    (2025, arXiv 2406.09179).
    """
    hits, count = tokens_of("extraction strength", hits, mask)
    misses = np.asarray(mask, bool) & (hits == 0.0)
    to_come = np.flip(np.cumsum(np.flip(misses, axis=1), axis=1), axis=1)
    extracted = np.asarray(mask, bool) & (to_come == 0)
    return extracted.sum(axis=1) / count
