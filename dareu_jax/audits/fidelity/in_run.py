"""In-Run Data Shapley: attribution added up while a model is trained.

s(q, o) = sum_t eta_t / n_t <sum of g over o's tokens in batch t, g_q>, n_t the tokens
of the batch, both gradients at the parameters of step t: the first-order share of o in
what gradient descent on the mean over tokens does to log p(q) (Wang et al., 2024). It
needs the queries beforehand and no index.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from dareu_jax.attribution.gradients import bilinear
from dareu_jax.attribution.kernel import OwnerBatch
from dareu_jax.data.batches import TokenBatch

Array = jax.Array


@functools.partial(jax.jit, static_argnames=("how", "owners"))
def step_shares(
    how: bilinear.How,
    owners: int,
    params: Any,
    batch: OwnerBatch,
    queries: TokenBatch,
    rate: Array,
) -> Array:
    """Return eta / n <sum of g over o's tokens, g_q> ``[Q, O]`` of a training step."""

    def zeros(leaf: Array) -> Array:
        shape = how.features.shape(*leaf.shape[1:])
        return jnp.zeros((len(leaf), owners, *shape), jnp.float32)

    empty = bilinear.GradientIndex(
        bilinear.by_matrix(params, zeros), jnp.zeros(owners, jnp.float32), jnp.uint32(0)
    )
    index, _ = bilinear.add_records(how._replace(reduction="sum"), params, batch, empty)
    tokens = jnp.sum(batch.text.response_mask.astype(jnp.float32))
    sums = index._replace(counts=jnp.full(owners, tokens, jnp.float32))
    return rate * bilinear.owner_scores(how, params, sums, queries)
