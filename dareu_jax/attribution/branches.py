"""Attribution of what a response would be with another token: all likely actions."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dareu_jax.attribution.kernel import Index, Kernel
from dareu_jax.data.batches import TokenBatch

Array = jax.Array


def branch_scores(kernel: Kernel) -> Callable[[Any, Index, TokenBatch, Array], Array]:
    """Return ``(params, index, queries, branches [B, T, A]) -> DA [B, T, A, O]``.

    Entry ``[b, t, a]`` is DA(y_<t v) float32 of token v = ``branches[b, t, a]`` behind
    the first t tokens of response b. A kernel without `Kernel.branch_score` scores
    every such text by itself, T A of them for a response.
    """
    return kernel.branch_score or OneByOne(kernel.score)


@dataclasses.dataclass(frozen=True)
class OneByOne:
    """`Kernel.branch_score` by a ``score`` of whole responses, a place at a time."""

    score: Callable[[Any, Index, TokenBatch], Array]

    def __call__(
        self, params: Any, index: Index, queries: TokenBatch, branches: Array
    ) -> Array:
        """Return DA ``[B, T, A, O]``."""
        rows, t, several = branches.shape
        place = jnp.arange(t, dtype=jnp.int32)
        each = jax.tree.map(lambda x: jnp.repeat(x, several, axis=0), queries)

        def at(of: tuple[Array, Array]) -> Array:
            now, tokens = of  # [], [B, A]
            said = jnp.where(place == now, tokens.reshape(-1, 1), each.response)
            seen = jnp.broadcast_to(place <= now, said.shape)
            texts = each._replace(response=said, response_mask=seen, own=None)
            return self.score(params, index, texts).reshape(rows, several, -1)

        scores = jax.lax.map(at, (place, jnp.moveaxis(branches, 1, 0)))
        return jnp.moveaxis(scores, 0, 1)
