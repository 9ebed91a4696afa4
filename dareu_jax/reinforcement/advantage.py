"""Returns and advantages over response tokens."""

import chex
import jax
import jax.numpy as jnp

Array = jax.Array


def discounted_returns(rewards: Array, mask: Array, gamma: float) -> Array:
    """R_t = r_t + gamma R_(t+1), ``[B, T]``; 0 where the mask is false."""
    chex.assert_rank([rewards, mask], 2)
    chex.assert_type(rewards, float)

    def back(future, now):
        r, m = now
        total = jnp.where(m, r + gamma * future, 0.0)
        return total, total

    start = jnp.zeros(rewards.shape[0], rewards.dtype)
    _, returns = jax.lax.scan(back, start, (rewards.T, mask.T), reverse=True)
    return returns.T


def gae(
    rewards: Array, values: Array, mask: Array, gamma: float, lam: float
) -> tuple[Array, Array]:
    """Generalised advantage estimation (Schulman et al., 2016).

    A_t = d_t + gamma lambda A_(t+1),  d_t = r_t + gamma V_(t+1) - V_t, V after the
    last token 0. With lambda = 1 this is the return minus V, as in DareU.

    Args:
      rewards, values: ``[B, T]`` float32; values[:, t] = V(c_t).
      mask: ``[B, T]`` bool.
      gamma: discount; lam: lambda.

    Returns:
      ``(advantages, returns)`` ``[B, T]``; returns = advantages + values.
    """
    chex.assert_rank([rewards, values, mask], 2)
    chex.assert_type([rewards, values], float)

    def back(carry, now):
        advantage, value = carry
        r, v, m = now
        delta = r + gamma * value - v
        here = jnp.where(m, delta + gamma * lam * advantage, 0.0)
        return (here, jnp.where(m, v, 0.0)), here

    zero = jnp.zeros(rewards.shape[0], rewards.dtype)
    over_time = (rewards.T, values.T, mask.T)
    _, advantages = jax.lax.scan(back, (zero, zero), over_time, reverse=True)
    advantages = advantages.T
    return advantages, jnp.where(mask, advantages + values, 0.0)


def masked_mean(x: Array, mask: Array) -> Array:
    """Mean of ``x`` where the mask is true; 0 when it is true nowhere."""
    weight = mask.astype(x.dtype)
    return jnp.sum(jnp.where(mask, x, 0.0)) / jnp.maximum(jnp.sum(weight), 1.0)


def whiten(x: Array, mask: Array, eps: float = 1e-8) -> Array:
    """(x - mean) / sd over the true entries, 0 elsewhere."""
    chex.assert_type(x, float)
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean) ** 2, mask)
    return jnp.where(mask, (x - mean) * jax.lax.rsqrt(variance + eps), 0.0)
