"""Attention of a layer: which keys a token sees, and how the sum over them is made."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dareu_jax.models.layers import softcapped

Array = jax.Array
FAR = 2**30
"""A slot behind every text."""
HIDDEN = -1e30
"""Added to the score of a key that is not seen, so that its weight is 0. A sum needs no
mask in the backward pass."""
LONG = 256
"""Tokens of a text from which on its scores are computed in blocks. On a CPU (9 heads
of 64, 3 of keys, 4 texts, forward and gradient, process time against all at once): 128
tokens .98, 256 tokens .57, 512 tokens .65, 1,024 tokens .51, 2,048 tokens .53."""
BLOCK = 128
"""Most queries whose scores exist at the same time."""
PARTS = 4
"""Of a long text's queries: those of the first do not multiply the keys behind it."""


class Scores(NamedTuple):
    """How a score is computed: root of ``dim`` under q k, bound of ``softcap``."""

    dim: int
    softcap: float | None = None


def ends(seen: Array) -> Array:
    """Return ``[B, S]`` int32: the slot from which on a key is not seen any more.

    ``seen`` is that already, or bool: true for keys that all later tokens see.
    """
    return seen if seen.dtype == jnp.int32 else jnp.where(seen, FAR, 0)


def in_window(seen: Array, window: int | Array) -> Array:
    """Return ``ends`` of keys that are seen from at most ``window - 1`` tokens behind.

    As in Mistral (Jiang et al., 2023). Slots of one row are contiguous, so their
    distance is the tokens' distance.
    """
    slots = jnp.arange(seen.shape[1], dtype=jnp.int32)
    return jnp.minimum(ends(seen), slots + window)


def visible(seen: Array, tokens: int, first: Array | int = 0) -> Array:
    """Return ``[B, T, S]`` bool: which keys each token sees, from slot ``first`` on."""
    at = (first + jnp.arange(tokens, dtype=jnp.int32))[:, None]
    end = ends(seen)
    start = jnp.where(end > 0, jnp.arange(end.shape[1], dtype=jnp.int32), FAR)
    return (start[:, None, :] <= at) & (at < end[:, None, :])


def attend(q: Array, k: Array, v: Array, visible: Array, scores: Scores) -> Array:
    """softmax(q k / sqrt(H)) v ``[B, T, N, H]`` with grouped keys; float32 softmax.

    The weights are divided by their sum behind the product with v, where it is smaller
    (Dao et al., 2022), and queries that share keys are rows of one product. ``q [B, T,
    N, H]``; ``k, v [B, K, S, H]`` with N = K G; ``visible [B, T, S]`` bool.
    """
    b, t, n, h = q.shape
    kv, s = k.shape[1:3]
    q = jnp.moveaxis(q.reshape(b, t, kv, -1, h), 1, 3).reshape(b, kv, -1, h)
    score = jnp.einsum("bkrh,bksh->bkrs", q, k, preferred_element_type=jnp.float32)
    score = score.reshape(b, kv, -1, t, s) / jnp.sqrt(jnp.float32(scores.dim))
    score = softcapped(score, scores.softcap)
    score = score + jnp.where(visible[:, None, None], jnp.float32(0.0), HIDDEN)
    highest = jax.lax.stop_gradient(jnp.max(score, axis=-1, keepdims=True))
    weights = jnp.exp(score - highest).reshape(b, kv, -1, s)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = weights.astype(v.dtype)
    out = jnp.einsum("bkrs,bksh->bkrh", weights, v, preferred_element_type=jnp.float32)
    out = (out / total).astype(v.dtype).reshape(b, kv, -1, t, h)
    return jnp.moveaxis(out, 3, 1).reshape(b, t, n, h)


def whole(
    q: Array, k: Array, v: Array, seen: Array, scores: Scores, first: Array | int
) -> Array:
    """`attend` with all scores ``[B, N, T, S]`` at once; ``first``: slot of query 0."""
    return attend(q, k, v, visible(seen, q.shape[1], first), scores)


def block_size(tokens: int) -> int:
    """Return how many queries have scores at the same time: all of a short text."""
    if tokens < LONG:
        return tokens
    blocks = max(PARTS, -(-tokens // BLOCK))
    return -(-tokens // blocks // 8) * 8


def in_blocks(
    q: Array, k: Array, v: Array, seen: Array, scores: Scores, first: Array | int
) -> Array:
    """`attend` with scores of `block_size` queries at a time; it has all derivatives.

    Memory grows with T, not with its square: the backward pass computes the scores of
    each block again (Rabe and Staats, 2021).
    """
    size = block_size(q.shape[1])
    if size == q.shape[1]:
        return whole(q, k, v, seen, scores, first)

    @jax.checkpoint  # keeps q, k and v, not the parts of them
    def attended(q: Array, k: Array, v: Array, end: Array) -> Array:
        return _each_part(q, (k, v, end), size, scores, first)

    return attended(q, k, v, ends(seen))


def _each_part(
    q: Array,
    keys: tuple[Array, Array, Array],
    size: int,
    scores: Scores,
    first: Array | int,
) -> Array:
    """`_each_block` of each of `PARTS` parts of the queries, over the keys not behind.

    ``keys``: k, v and their ends.
    """
    k, v, end = keys
    t, s = q.shape[1], k.shape[2]
    step = -(-t // size // PARTS) * size
    out = []
    for start in range(0, t, step):
        stop = min(start + step, t)
        near = stop if s == t else s
        keys = k[:, :, :near], v[:, :, :near], end[:, :near]
        out.append(_each_block(q[:, start:stop], keys, size, scores, first + start))
    return jnp.concatenate(out, axis=1)


def _each_block(
    q: Array,
    keys: tuple[Array, Array, Array],
    size: int,
    scores: Scores,
    first: Array | int,
) -> Array:
    """`whole` of ``size`` queries at a time; ``keys``: k, v and their ends."""
    b, t, n, h = q.shape
    q = jnp.pad(q, ((0, 0), (0, -t % size), (0, 0), (0, 0)))
    blocks = jnp.moveaxis(q.reshape(b, -1, size, n, h), 1, 0)
    slots = first + size * jnp.arange(len(blocks), dtype=jnp.int32)

    @jax.checkpoint
    def block(of: tuple[Array, Array]) -> Array:
        return whole(of[0], *keys, scores, of[1])

    out = jnp.moveaxis(jax.lax.map(block, (blocks, slots)), 0, 1)
    return out.reshape(b, -1, n, h)[:, :t]
