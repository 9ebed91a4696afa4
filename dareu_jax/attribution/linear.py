"""Rewards that are linear in the owners' scores, at the price of one direction."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dareu_jax.attribution.kernel import Kernel
from dareu_jax.corpus.batches import TokenBatch

Array = jax.Array


def margin_weights(owners: int, columns: Sequence[int]) -> Array:
    """Return ``[O]`` float32: the mean of the owners in ``columns`` less the rest's."""
    inside = jnp.zeros(owners, jnp.float32).at[jnp.asarray(columns)].set(1.0)
    rest = 1.0 - inside
    return inside / jnp.sum(inside) - rest / jnp.maximum(jnp.sum(rest), 1.0)


def linear_reward(
    kernel: Kernel, weights: Array, params: Any, index: Any, queries: TokenBatch
) -> Array:
    """Return sum_o r_o s(q, o) ``[B]``, by the kernel's shorter way where it has one.

    Args:
      weights: ``[O]`` float32, r; the rest as for `Kernel.score`.
    """
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

    return dataclasses.replace(kernel, score=score, prefix_score=None, fold=None)


def spread(kernel: Kernel, columns: Sequence[int]) -> Kernel:
    """Return a calibrated `margin` ``[..., 2]`` as columns of all owners.

    The first is shared by the owners in ``columns``, the second by the others.
    """
    inside = jnp.zeros(kernel.owners, jnp.float32).at[jnp.asarray(columns)].set(1.0)
    shares = jnp.stack([inside, 1.0 - inside])
    shares = shares / jnp.maximum(jnp.sum(shares, axis=1, keepdims=True), 1.0)

    def over_owners(score: Any) -> Any:
        return score and (lambda *given: score(*given) @ shares)

    return dataclasses.replace(
        kernel,
        score=over_owners(kernel.score),
        prefix_score=over_owners(kernel.prefix_score),
    )
