"""Statistics of every token of a response, from one forward pass."""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from dareu_jax.data import TokenBatch
from dareu_jax.models import Decoder, over_logits, token_logps, trunk_of

Array = jax.Array


class TokenStats(NamedTuple):
    """Numbers per response token, ``[B, T]`` float32, 0 outside the mask.

    All four are NaN at a token whose logits hold a NaN or +inf: no metric may read a
    broken model as one that forgot.

    Attributes:
      logps: log p(y_t | q, y_<t) in nats.
      hits: 1.0 where y_t is the argmax, the first one among equals.
      mean: mu_t = sum_v p(v) log p(v) over the vocabulary.
      std: sigma_t = sqrt(sum_v p(v) (log p(v))^2 - mu_t^2).
    """

    logps: Array
    hits: Array
    mean: Array
    std: Array


def spread(logits: Array) -> tuple[Array, Array]:
    """Return mean and standard deviation ``[...]`` of log p over p, from ``[..., V]``.

    A token of probability 0 adds nothing. The variance is summed around the mean,
    which equals sum p (log p)^2 - mu^2 and loses no digits where both are large.

    Source: Zhang et al. (2025, arXiv 2404.02936), min-k %++.
    """
    logps = jax.nn.log_softmax(logits, axis=-1)
    p = jnp.exp(logps)
    mean = jnp.sum(jnp.where(p > 0.0, p * logps, 0.0), axis=-1)
    off = jnp.where(p > 0.0, p * jnp.square(logps - mean[..., None]), 0.0)
    return mean, jnp.sqrt(jnp.sum(off, axis=-1))


def stats_of(logits: Array, tokens: Array) -> TokenStats:
    """Return `TokenStats` ``[B, T]`` of ``tokens [B, T]`` from ``logits [B, T, V]``."""
    chex.assert_rank([logits, tokens], [3, 2])
    chex.assert_type(logits, jnp.float32)
    hits = (jnp.argmax(logits, axis=-1) == tokens).astype(jnp.float32)
    stats = TokenStats(token_logps(logits, tokens), hits, *spread(logits))
    is_sound = jnp.isfinite(jax.nn.logsumexp(logits, axis=-1))
    return jax.tree.map(lambda x: jnp.where(is_sound, x, jnp.nan), stats)


@functools.partial(jax.jit, static_argnames="model")
def token_stats(model: Decoder, params: Any, batch: TokenBatch) -> TokenStats:
    """Return `TokenStats` of a batch's responses, end of text included.

    The logits ``[B, T, V]`` never exist whole.
    """
    stats = over_logits(stats_of, [trunk_of(model, params, batch)], batch.response)
    return jax.tree.map(lambda x: jnp.where(batch.response_mask, x, 0.0), stats)
