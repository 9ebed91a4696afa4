"""A reward that is linear in the owners' scores, at the price of one direction."""

from typing import Any

import jax
import jax.numpy as jnp

from dareu_jax.attribution.kernel import Kernel
from dareu_jax.corpus.batches import TokenBatch

Array = jax.Array


def margin_weights(owners: int, columns: tuple[int, ...]) -> Array:
    """``[O]`` float32: the mean of the owners in ``columns`` less that of the rest."""
    inside = jnp.zeros(owners, jnp.float32).at[jnp.asarray(columns)].set(1.0)
    rest = 1.0 - inside
    return inside / jnp.sum(inside) - rest / jnp.maximum(jnp.sum(rest), 1.0)


def linear_reward(
    kernel: Kernel, weights: Array, params: Any, index: Any, queries: TokenBatch
) -> Array:
    """sum_o r_o s(q, o) ``[B]``, by the kernel's own shorter way where it has one.

    Args:
      weights: ``[O]`` float32, r; the rest as for `Kernel.score`.
    """
    if kernel.fold is not None:
        return kernel.fold(params, index, weights, queries)
    return kernel.score(params, index, queries) @ weights
