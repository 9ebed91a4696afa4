"""Turn scores in a kernel's own unit into DA in [0, 1], and score every prefix."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

from dareu_jax.attribution.kernel import OWNERS, Kernel, axes_of
from dareu_jax.data.batches import TokenBatch

Array = jax.Array
SHARPNESS = np.geomspace(1e-2, 1e3, 201)
"""Values of beta that `fit_calibration` tries."""


class Calibration(NamedTuple):
    """DA = softmax_o(beta (s_o - mean_o) / scale_o); ``[O]``, ``[O]`` and ``[]``."""

    mean: Array
    scale: Array
    beta: Array


def fit_calibration(scores: np.ndarray, owner: np.ndarray) -> Calibration:
    """Return mean and deviation of every column, and the likeliest beta for labels.

    Args:
      scores: ``[N, O]`` of reference responses; owner: ``[N]`` their columns.
    """
    scores = np.asarray(scores, np.float64)
    mean, scale = scores.mean(axis=0), np.maximum(scores.std(axis=0), 1e-12)
    z = (scores - mean) / scale
    right = z[np.arange(len(owner)), owner]

    def nll(beta: float) -> float:
        return float(np.mean(logsumexp(beta * z, axis=1) - beta * right))

    beta = min(SHARPNESS, key=nll)
    return Calibration(*(jnp.asarray(x, jnp.float32) for x in (mean, scale, beta)))


def probabilities(calibration: Calibration, scores: Array) -> Array:
    """Return DA ``[..., O]`` in [0, 1] of ``scores [..., O]``."""
    z = (scores - calibration.mean) / calibration.scale
    return jax.nn.softmax(calibration.beta * z, axis=-1)


def calibrated(kernel: Kernel) -> Kernel:
    """Return the kernel with scores in [0, 1], whose index has a `Calibration` too."""

    def score(params: Any, index: Any, queries: TokenBatch) -> Array:
        return probabilities(index[1], kernel.score(params, index[0], queries))

    def prefix_score(params: Any, index: Any, queries: TokenBatch) -> Array:
        assert kernel.prefix_score is not None
        return probabilities(index[1], kernel.prefix_score(params, index[0], queries))

    def axes(index: Any) -> Any:
        own = Calibration(mean=(OWNERS,), scale=(OWNERS,), beta=())  # type: ignore
        return axes_of(kernel, index[0]), own

    return dataclasses.replace(
        kernel,
        score=score,
        prefix_score=prefix_score if kernel.prefix_score else None,
        branch_score=None,
        axes=axes,
        adds_up=False,
        is_probability=True,
    )


def sliced(kernel: Kernel, width: int) -> Kernel:
    """Return the kernel with `prefix_score`: a token gets the score at its slice's end.

    A slice has ``width`` tokens.
    """
    if kernel.prefix_score is not None:
        return kernel

    def prefix_score(params: Any, index: Any, queries: TokenBatch) -> Array:
        t = queries.response.shape[1]
        place = jnp.arange(t, dtype=jnp.int32)

        def up_to(end: Array) -> Array:
            seen = queries.response_mask & (place <= end)[None]
            return kernel.score(params, index, queries._replace(response_mask=seen))

        ends = jnp.arange(width - 1, t + width - 1, width, dtype=jnp.int32)
        each = jax.lax.map(up_to, ends)  # [slices, B, O]
        return jnp.repeat(jnp.moveaxis(each, 0, 1), width, axis=1)[:, :t]

    return dataclasses.replace(kernel, prefix_score=prefix_score)


def sides(owners: int, columns: Sequence[int]) -> Array:
    """Return 1 for the owners in ``columns``, and 1 for the others: ``[2, O]``."""
    inside = jnp.zeros(owners, jnp.float32).at[jnp.asarray(columns)].set(1.0)
    return jnp.stack([inside, 1.0 - inside])


def margin_weights(owners: int, columns: Sequence[int]) -> Array:
    """Return ``[O]`` float32: the mean of the owners in ``columns`` less the rest's."""
    inside, rest = sides(owners, columns)
    return inside / jnp.sum(inside) - rest / jnp.maximum(jnp.sum(rest), 1.0)


def linear_reward(
    kernel: Kernel, weights: Array, params: Any, index: Any, queries: TokenBatch
) -> Array:
    """Return sum_o r_o s(q, o) ``[B]``, the shorter way where the kernel has one."""
    if kernel.fold is not None:
        return kernel.fold(params, index, weights, queries)
    return kernel.score(params, index, queries) @ weights


def margin(kernel: Kernel, columns: Sequence[int]) -> Kernel:
    """Return the kernel as one number: the owners in ``columns`` less the rest.

    Its scores are ``[B, 2]``, the margin and 0: a softmax of them, calibrated, is the
    probability that a response is of one of those owners, and that it is not. However
    many owners there are, a kernel with `Kernel.fold` takes one ``jvp`` for it.
    """
    weights = margin_weights(kernel.owners, columns)

    def score(params: Any, index: Any, queries: TokenBatch) -> Array:
        found = linear_reward(kernel, weights, params, index, queries=queries)
        return jnp.stack([found, jnp.zeros_like(found)], axis=-1)

    return dataclasses.replace(
        kernel, score=score, prefix_score=None, branch_score=None, fold=None
    )


def spread(kernel: Kernel, columns: Sequence[int]) -> Kernel:
    """Return a calibrated `margin` ``[..., 2]`` as columns of all owners.

    The first is shared by the owners in ``columns``, the second by the others.
    """
    shares = sides(kernel.owners, columns)
    shares = shares / jnp.maximum(jnp.sum(shares, axis=1, keepdims=True), 1.0)

    def over_owners(score: Any) -> Any:
        return score and (lambda *given: score(*given) @ shares)

    return dataclasses.replace(
        kernel,
        score=over_owners(kernel.score),
        prefix_score=over_owners(kernel.prefix_score),
        branch_score=None,
    )
