"""From attribution scores to token rewards (DareU, Lu et al. 2026, section 4).

Arrays are ``[B, T]`` float32, masks ``[B, T]`` bool.
"""

import math

import chex
import jax
import jax.numpy as jnp

from dareu_jax.rl.advantage import Number

Array = jax.Array


def chi(b: Array, c_seg: Number = 1.05, eps: Number = 1e-6) -> Array:
    """chi(b) = clip(ln(1 - clip(b, eps, 1 - eps)) / C_seg, -1, 0): score to penalty.

    chi(0) = 0, chi(.5) = -.6601, and -1 from b = 1 - exp(-C_seg) up.
    """
    chex.assert_type(b, float)
    inside = jnp.clip(b, eps, 1.0 - eps)
    return jnp.clip(jnp.log1p(-inside) / c_seg, -1.0, 0.0)


def segment_scores(scores: Array, mask: Array, kappa: int | Array) -> Array:
    """Gives each token the score of the prefix that ends its kappa-token segment.

    Token t' (1-based) takes the prefix of length min(ceil(t'/kappa) kappa, |y|).

    Here scores[:, t-1] = DA(i, y[:t]); true entries of the mask stand on the left.
    ``kappa`` is the same for all rows, or ``[B]`` int32.
    """
    chex.assert_rank([scores, mask], 2)
    chex.assert_type([scores, mask], [float, bool])
    width = jnp.reshape(jnp.asarray(kappa, jnp.int32), (-1, 1))
    t = jnp.arange(scores.shape[1], dtype=jnp.int32)[None]
    end = (t // width + 1) * width - 1  # 0-based end of the segment of t
    last = jnp.sum(mask.astype(jnp.int32), axis=1, keepdims=True) - 1
    at = jnp.clip(jnp.minimum(end, last), 0, None)
    return jnp.where(mask, jnp.take_along_axis(scores, at, axis=1), 0.0)


def running_mean(x: Array, mask: Array) -> Array:
    """1/(t+1) sum over t' <= t of x_t': the paper's token reward, ``[B, T]``."""
    chex.assert_rank([x, mask], 2)
    chex.assert_type([x, mask], [float, bool])
    count = jnp.cumsum(mask.astype(x.dtype), axis=1)
    total = jnp.cumsum(jnp.where(mask, x, 0.0), axis=1)
    return jnp.where(mask, total / jnp.maximum(count, 1.0), 0.0)


def on_last_token(x: Array, mask: Array) -> Array:
    """Keeps ``x [B, T]`` at the last true entry of the mask, 0 elsewhere."""
    chex.assert_rank([x, mask], 2)
    chex.assert_type([x, mask], [float, bool])
    following = jnp.pad(mask[:, 1:], ((0, 0), (0, 1)), constant_values=False)
    return jnp.where(mask & ~following, x, 0.0)


def difference(x: Array, mask: Array) -> Array:
    """x_t - x_(t-1) with x_(-1) = 0: telescopes to the last x, whatever the length.

    Potential-based shaping (Ng, Harada and Russell, 1999) without discount.
    """
    chex.assert_rank([x, mask], 2)
    chex.assert_type([x, mask], [float, bool])
    before = jnp.pad(x[:, :-1], ((0, 0), (1, 0)))
    return jnp.where(mask, x - before, 0.0)


def token_rewards(penalty: Array, mask: Array, shape: str) -> Array:
    """Spreads the penalty chi of every prefix over the tokens, ``[B, T]``.

    Args:
      penalty: chi(DA) of the prefix that ends at each token's segment.
      shape: ``paper`` (running mean), ``token``, ``sequence`` or ``potential``.

    Raises:
      KeyError: unknown shape.
    """
    chex.assert_rank([penalty, mask], 2)
    chex.assert_type([penalty, mask], [float, bool])
    spread = {
        "paper": running_mean,
        "token": lambda x, m: jnp.where(m, x, 0.0),
        "sequence": on_last_token,
        "potential": difference,
    }
    return spread[shape](penalty, mask)


def prior_bonus(logps: Array, mask: Array, floor: Number) -> Array:
    """clip(1 + mean log-likelihood / floor, 0, 1) of every prefix, ``[B, T]``.

    ``logps`` are those of the counterfactual prior; at ``floor`` nats per token an
    answer is worth nothing.
    """
    return jnp.clip(1.0 + running_mean(logps, mask) / floor, 0.0, 1.0)


def segment_length(max_new_tokens: int, slices: int) -> int:
    """kappa = ceil(T / k): tokens per segment for k slices of T tokens."""
    return max(1, math.ceil(max_new_tokens / slices))


def kappa_of(mask: Array, slices: int, tokens: int | None) -> int | Array:
    """Return kappa of answers ``[B, T]``, see `segment_length`.

    ``tokens`` are those of the longest answer that there can be; None: k slices of each
    answer's own length, kappa_b = ceil(|y_b| / k), ``[B]`` int32.
    """
    if tokens is not None:
        return segment_length(tokens, slices)
    chex.assert_rank(mask, 2)
    chex.assert_type(mask, bool)
    length = jnp.sum(mask.astype(jnp.int32), axis=1)
    return jnp.maximum(-(-length // slices), 1)
