"""Kernels `bm25` and `ngram`: they compare words and do not look at the model."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dareu_jax.attribution.kernel import (
    OWNERS,
    Kernel,
    OwnerBatch,
    Setup,
    by_field,
    from_prefixes,
    owner_weights,
    running_mean,
)
from dareu_jax.data.batches import TokenBatch, own_tokens
from dareu_jax.registry import KERNELS

Array = jax.Array
K1, B = 1.2, 0.75
"""Saturation and length normalisation of BM25, as Robertson et al. (1994) have them."""
N, BUCKETS = 3, 2**18
"""Tokens of an n-gram, and how many hashes of one there are."""
FACTORS = (2_654_435_761, 2_246_822_519, 3_266_489_917)


class TermIndex(NamedTuple):
    """How often every owner uses every token ``[O, V]``, float32."""

    terms: Array


def counting(
    name: str,
    owners: int,
    size: int,
    *,
    terms_of: Callable[[Array, Array], tuple[Array, Array]],
    weights_of: Callable[[Array], Array],
) -> Kernel:
    """Return a kernel that counts owners' terms; a prefix scores their mean weight.

    ``terms_of`` makes terms and their mask of tokens and theirs ``[B, T]``,
    ``weights_of`` weights ``[V, O]`` of counts ``[O, V]``; ``size``: V.
    """

    def init(params, *, key: Array) -> TermIndex:
        return TermIndex(jnp.zeros((owners, size), jnp.float32))

    @jax.jit
    def update(params, batch: OwnerBatch, acc: TermIndex):
        at, real = terms_of(batch.text.response, own_tokens(batch.text))
        counted = real.astype(jnp.float32)[..., None]
        each = owner_weights(batch, owners)[:, None] * counted  # [B, T, O]
        counts = acc.terms.at[:, at].add(jnp.moveaxis(each, -1, 0))
        return TermIndex(counts), {"loss": jnp.float32(0.0)}

    def prefix_score(params, index: TermIndex, queries: TokenBatch) -> Array:
        at, real = terms_of(queries.response, own_tokens(queries))
        return running_mean(weights_of(index.terms)[at], real)

    return from_prefixes(
        name=name,
        owners=owners,
        init=init,
        update=update,
        prefix_score=prefix_score,
        axes=by_field({"terms": (OWNERS, "vocab")}),
    )


def bm25_weights(counts: Array) -> Array:
    """Return idf(v) tf (k1 + 1) / (tf + k1 (1 - b + b len / mean len)), ``[V, O]``.

    Owners are the documents; idf(v) = ln(1 + (O - n_v + 1/2) / (n_v + 1/2)), n_v the
    owners that use v (Robertson et al., 1994), of ``counts [O, V]``.
    """
    using = jnp.sum((counts > 0).astype(jnp.float32), axis=0)
    idf = jnp.log1p((len(counts) - using + 0.5) / (using + 0.5))
    length = jnp.sum(counts, axis=1, keepdims=True)
    longer = 1.0 - B + B * length / jnp.maximum(jnp.mean(length), 1.0)
    return (idf * counts * (K1 + 1.0) / (counts + K1 * longer + 1e-9)).T


@KERNELS.register("bm25", "BM25 of the response's tokens, owners as documents")
def make_bm25(setup: Setup) -> Kernel:
    """Return BM25, a mean over the response's tokens."""
    return counting(
        "bm25",
        setup.owners,
        setup.model.cfg.vocab,
        terms_of=lambda tokens, mask: (tokens, mask),
        weights_of=bm25_weights,
    )


def buckets_of(tokens: Array, mask: Array) -> tuple[Array, Array]:
    """Return the hash of the n-gram that ends at every position, and if one does."""
    moved = [jnp.roll(tokens, i, axis=1).astype(jnp.uint32) for i in range(N)]
    products = (t * jnp.uint32(f) for t, f in zip(moved, FACTORS, strict=True))
    mixed = functools.reduce(jnp.add, products)
    long_enough = jnp.arange(tokens.shape[1], dtype=jnp.int32) >= N - 1
    return (mixed >> jnp.uint32(14)).astype(jnp.int32), mask & long_enough[None]


@KERNELS.register("ngram", "share of the response's 3-grams that the owner has")
def make_ngram(setup: Setup) -> Kernel:
    """Return the share of n-grams that occur in any record of the owner."""
    return counting(
        "ngram",
        setup.owners,
        BUCKETS,
        terms_of=buckets_of,
        weights_of=lambda counts: (counts > 0.0).astype(jnp.float32).T,
    )
