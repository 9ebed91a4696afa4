"""The next token of every row, the likeliest or drawn, over large vocabularies."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

Array = jax.Array
BLOCK = 128
"""Tokens of a block: a choice is made among blocks first, then inside one."""


def best_token(logits: Array) -> Array:
    """Return the first maximum ``[B] int32`` of ``logits [B, V]``, as `jnp.argmax`."""
    chex.assert_rank(logits, 2)
    blocks = in_blocks(logits)
    block = jnp.argmax(jnp.max(blocks, axis=-1), axis=-1)
    inside = jnp.argmax(block_of(blocks, block), axis=-1)
    return (block * BLOCK + inside).astype(jnp.int32)


def drawn_token(logits: Array, *, keys: Array) -> tuple[Array, Array]:
    """Return tokens ``[B]`` of softmax(logits), and log p of each, with ``keys [B]``.

    A block is drawn by its mass, then a token of the block by its own: two draws of few
    numbers have the distribution of one draw among all V. Both take the largest
    log-mass with Gumbel noise (Maddison et al., 2014), so that no sum is rounded.
    """
    chex.assert_rank([logits, keys], [2, 1])
    chex.assert_type(logits, jnp.float32)
    highest = jnp.max(logits, axis=-1, keepdims=True)
    blocks = in_blocks(logits - highest)
    mass = jnp.sum(jnp.exp(blocks), axis=-1)
    n = mass.shape[-1]
    noise = jax.vmap(lambda key: jax.random.gumbel(key, (n + BLOCK,)))(keys)
    block = jnp.argmax(jnp.log(mass) + noise[:, :n], axis=-1)
    own = block_of(blocks, block)
    inside = jnp.argmax(own + noise[:, n:], axis=-1)
    picked = jnp.take_along_axis(own, inside[:, None], axis=-1)[:, 0]
    logp = picked - jnp.log(jnp.sum(mass, axis=-1))
    return (block * BLOCK + inside).astype(jnp.int32), logp


def in_blocks(logits: Array) -> Array:
    """Return ``[B, V]`` as ``[B, N, K]``; -inf fills the last block."""
    fill = ((0, 0), (0, -logits.shape[-1] % BLOCK))
    padded = jnp.pad(logits, fill, constant_values=-jnp.inf)
    return padded.reshape(len(logits), -1, BLOCK)


def block_of(blocks: Array, place: Array) -> Array:
    """Return of each row of ``blocks [B, N, K]`` that at ``place [B]``: ``[B, K]``."""
    return jnp.take_along_axis(blocks, place[:, None, None], axis=1)[:, 0]


def truncated(logits: Array, *, top_k: int, top_p: float) -> Array:
    """Return ``logits [B, V]``, -inf where a token may not be drawn.

    The ``top_k`` best tokens stay (Fan et al., 2018; 0: all), and of these the smallest
    set whose mass reaches ``top_p`` (Holtzman et al., 2020). One token always stays.
    """
    if 0 < top_k < logits.shape[-1]:
        ones = jnp.ones_like(logits)
        logits = jnp.where(leading(logits, ones, float(top_k)), logits, -jnp.inf)
    if top_p < 1.0:
        mass = jax.nn.softmax(logits, axis=-1)
        least = max(top_p, float(jnp.finfo(jnp.float32).tiny))
        logits = jnp.where(leading(logits, mass, least), logits, -jnp.inf)
    return logits


def leading(values: Array, weights: Array, least: float) -> Array:
    """Return ``[B, V]`` bool: the fewest of the largest whose weights reach ``least``.

    Of equal ``values [B, V]`` the first come first. Nothing is sorted: whether a bound
    lies far enough down is one sum of ``weights [B, V]``, and bits of the bound are
    found one after the other.
    """
    rank, place = descending(values), jnp.arange(values.shape[-1], dtype=jnp.uint32)

    def short(kept: Array) -> Array:
        return jnp.sum(jnp.where(kept, weights, 0.0), axis=-1) < least

    def before(bound: Array) -> Array:
        return rank < bound[:, None]

    bound = greatest(lambda n: short(before(n)), 32, len(values))
    above, ties = before(bound), rank == bound[:, None]

    def first(count: Array) -> Array:
        return above | (ties & (place < count[:, None]))

    count = greatest(lambda n: short(first(n)), len(place).bit_length(), len(values))
    return first(count + 1)


def descending(values: Array) -> Array:
    """Return float32 ``values`` as uint32 of which the smallest is the largest."""
    one_zero = jnp.where(values == 0.0, 0.0, values)  # 0 and -0 are equal
    bits = jax.lax.bitcast_convert_type(one_zero, jnp.uint32)
    is_negative = bits >= jnp.uint32(1 << 31)
    return jnp.where(is_negative, bits, jnp.uint32((1 << 31) - 1) - bits)


def greatest(holds: Callable[[Array], Array], bits: int, rows: int) -> Array:
    """Return the greatest number of ``bits`` for which ``holds``, ``[B] uint32``.

    ``holds`` is true up to some number of each row, and false behind it; 0 is returned
    where it is never true.
    """
    powers = jnp.asarray([1 << n for n in reversed(range(bits))], jnp.uint32)

    def add(found: Array, power: Array) -> tuple[Array, None]:
        tried = found + power
        return jnp.where(holds(tried), tried, found), None

    return jax.lax.scan(add, jnp.zeros(rows, jnp.uint32), powers)[0]
