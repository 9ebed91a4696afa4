"""What is differentiated: a number for every response, ``[B]`` float32.

A measurement is ``(model, params, batch, weight, slots) -> [B]``; ``weight [B]`` is its
reduction over tokens, ``slots`` what the probe puts into the model.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dareu_jax.data.batches import TokenBatch, own_tokens
from dareu_jax.models import Decoder, over_logits, response_logps, token_logps, trunk_of

Array = jax.Array
CERTAIN = -1e-6
"""A token likelier than this, in nats, counts as this likely in `log_odds`."""


def token_weight(batch: TokenBatch, reduction: str) -> Array:
    """Return ``[B]`` float32: 1 / `own_tokens` of the response (mean) or 1 (sum)."""
    length = jnp.sum(own_tokens(batch).astype(jnp.float32), axis=1)
    if reduction == "sum":
        return jnp.ones_like(length)
    return 1.0 / jnp.maximum(length, 1.0)


def over_own(x: Array, batch: TokenBatch) -> Array:
    """Return the sum of ``x [B, T]`` over the response's own tokens, ``[B]``."""
    return jnp.sum(jnp.where(own_tokens(batch), x, 0.0), axis=1)


def in_words(measure: Callable[..., Array]) -> str:
    """Return what a measurement is; of one that is not described here, its name."""
    about: dict[Any, str] = {
        log_likelihoods: "log p(response | prompt)",
        log_odds: "log-odds of the response's tokens",
    }
    return about.get(measure) or measure.__qualname__


def log_likelihoods(
    model: Decoder, params: Any, batch: TokenBatch, weight: Array, slots: Any = None
) -> Array:
    """Return w_b sum_t log p(y_t | q, y_<t) over the response's own tokens, ``[B]``."""
    logps = response_logps(model, params, batch, slots=slots)
    return weight * over_own(logps, batch)


def log_likelihood(
    model: Decoder, params: Any, batch: TokenBatch, weight: Array
) -> Array:
    """Return the sum of `log_likelihoods`, a float32 scalar."""
    return jnp.sum(log_likelihoods(model, params, batch, weight))


def log_odds(
    model: Decoder, params: Any, batch: TokenBatch, weight: Array, slots: Any = None
) -> Array:
    """Return w_b sum_t log(p_t / (1 - p_t)), ``[B]``, as TRAK has it (Park, 2023)."""

    def odds(logits: Array, tokens: Array) -> Array:
        logps = token_logps(logits, tokens)
        return logps - jnp.log(-jnp.expm1(jnp.minimum(logps, CERTAIN)))

    trunk = trunk_of(model, params, batch, slots=slots)
    each = over_logits(odds, [trunk], batch.response)
    return weight * over_own(each, batch)


@functools.partial(jax.jit, static_argnames="model")
def mean_probability(model: Decoder, params: Any, batch: TokenBatch) -> Array:
    """Return the mean of p(y_t | q, y_<t) over the response's tokens, ``[B]``."""
    p = jnp.exp(response_logps(model, params, batch))
    return over_own(p, batch) * token_weight(batch, "mean")


def sampled_log_likelihoods(key: Array, model, params, batch, weight, slots=None):
    """Return w_b sum_t log p(y'_t | q, y_<t), y' drawn from the model by ``key``.

    Its gradients are those of the true Fisher matrix.
    """

    def drawn(logits: Array, u: Array) -> Array:
        below = jnp.cumsum(jax.nn.softmax(jax.lax.stop_gradient(logits)), axis=-1)
        tokens = jnp.sum((below < u[..., None]).astype(jnp.int32), axis=-1)
        return token_logps(logits, jnp.minimum(tokens, logits.shape[-1] - 1))

    trunk = trunk_of(model, params, batch, slots=slots)
    u = jax.random.uniform(key, batch.response.shape, jnp.float32)
    each = over_logits(drawn, [trunk], u)
    return weight * over_own(each, batch)
