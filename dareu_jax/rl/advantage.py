"""Returns and advantages over response tokens."""

import chex
import jax
import jax.numpy as jnp

Array = jax.Array
Number = float | jax.Array


def gae(
    rewards: Array, values: Array, mask: Array, gamma: Number, lam: Number
) -> tuple[Array, Array]:
    """Generalised advantage estimation (Schulman et al., 2016).

    A_t = d_t + gamma lambda A_(t+1),  d_t = r_t + gamma V_(t+1) - V_t, V after the
    last token 0. With lambda = 1 this is the return minus V, as in DareU.

    Args:
      rewards, values: ``[B, T]`` float32; values[:, t] = V(c_t).
      mask: ``[B, T]`` bool; lam: lambda.

    Returns:
      ``(advantages, returns)`` ``[B, T]``; returns = advantages + values.
    """
    chex.assert_rank([rewards, values, mask], 2)
    chex.assert_type([rewards, values, mask], [float, float, bool])

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


def group_advantage(
    rewards: Array, mask: Array, group_size: int, eps: float = 1e-4, scale: bool = True
) -> Array:
    """A_b = (r_b - mean of its group) / (sd of its group + eps), at every token.

    The advantage of GRPO (Shao et al., 2024, DeepSeekMath, arXiv 2402.03300): the other
    responses to the same prompt are the baseline, so that no value head is needed. The
    sd divides by G - 1, as in TRL and Tunix. Without ``scale`` it is the advantage of
    Dr. GRPO (Liu et al., 2025, arXiv 2503.20783): r_b - mean.

    Args:
      rewards: ``[B]`` float32, one for each whole response; mask: ``[B, T]`` bool.
      group_size: G, the responses to one prompt; they are rows next to each other.

    Returns:
      ``[B, T]`` float32; 0 where the mask is false.

    Raises:
      ValueError: the group has one response, or B is not a multiple of its size.
    """
    chex.assert_rank([rewards, mask], [1, 2])
    chex.assert_type([rewards, mask], [float, bool])
    if group_size < 2 or len(rewards) % group_size:
        raise ValueError(
            f"{len(rewards)} responses in groups of {group_size}: give groups of at "
            "least 2, and whole groups"
        )
    groups = rewards.reshape(-1, group_size)
    above = groups - groups.mean(axis=1, keepdims=True)
    if scale:
        above = above / (groups.std(axis=1, ddof=1, keepdims=True) + eps)
    return jnp.where(mask, above.reshape(-1, 1), 0.0)


def masked_mean(x: Array, mask: Array) -> Array:
    """Mean of ``x`` where the mask is true; 0 when it is true nowhere."""
    chex.assert_equal_shape([x, mask])
    chex.assert_type([x, mask], [float, bool])
    weight = mask.astype(x.dtype)
    return jnp.sum(jnp.where(mask, x, 0.0)) / jnp.maximum(jnp.sum(weight), 1.0)


def whiten(x: Array, mask: Array, eps: float = 1e-8) -> Array:
    """(x - mean) / sd over the true entries, 0 elsewhere."""
    chex.assert_equal_shape([x, mask])
    chex.assert_type([x, mask], [float, bool])
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean) ** 2, mask)
    return jnp.where(mask, (x - mean) * jax.lax.rsqrt(variance + eps), 0.0)
