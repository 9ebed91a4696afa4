"""Learning from all likely tokens of a place, each with a reward that is known.

Arrays of actions are ``[B, T, A]`` float32: A tokens of every place, ``rest [B, T]`` is
what all other tokens of the vocabulary have in common. Masks are ``[B, T]`` bool.
"""

import chex
import jax
import jax.numpy as jnp

from dareu_jax.rl.advantage import Number, masked_mean

Array = jax.Array
CERTAIN = 1e-6
"""Least probability of the tokens that are no action."""


def likeliest(logits: Array, count: int) -> tuple[Array, Array]:
    """Return the ``count`` likeliest tokens ``[B, T, A]`` int32 and their log-probs."""
    chex.assert_rank(logits, 3)
    highest, tokens = jax.lax.top_k(logits, count)
    total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    return tokens, highest - total


def gains_of(
    chi: Array, before: Array, is_end: Array, logps: Array
) -> tuple[Array, Array]:
    """Return the reward of every action and of all other tokens.

    An action bears the penalty of the text that it makes, an end of text and the tokens
    that are no action that of the text before them. Behind an empty answer there is
    none: they bear the actions' mean under the policy, so that saying nothing neither
    gains nor loses.

    Args:
      chi: ``[B, T, A]`` penalty of y_<t v; before: ``[B, T]`` of y_<=t, the text that
        ends here.
      is_end: ``[B, T, A]`` bool; logps: ``[B, T, A]`` of the policy.

    Returns:
      ``[B, T, A]`` and ``[B, T]``.
    """
    chex.assert_equal_shape([chi, is_end, logps])
    weight = jnp.where(is_end, 0.0, jnp.exp(logps))[:, :1]
    total = jnp.maximum(jnp.sum(weight, axis=-1), CERTAIN)
    first = jnp.sum(weight * chi[:, :1], axis=-1) / total
    rest = jnp.concatenate([first, before[:, :-1]], axis=1)
    return jnp.where(is_end, rest[..., None], chi), rest


def tilted(logits: Array, tokens: Array, gains: Array, rest: Array) -> Array:
    """Return log p(v) + gain(v) ``[B, T, V]`` up to a number, p = softmax(logits).

    It is the policy that gains most for its KL to p: the optimum of E gain - KL(pi ||
    p). ``tokens [B, T, A]`` are those that ``gains`` are of.
    """
    chex.assert_rank([logits, tokens, gains, rest], [3, 3, 3, 2])
    row = jnp.arange(tokens.shape[0])[:, None, None]
    place = jnp.arange(tokens.shape[1])[None, :, None]
    above = gains - rest[..., None]
    return logits.at[row, place, tokens].add(above)


def with_rest(logps: Array) -> Array:
    """Return log-probs ``[..., A + 1]``: of the actions, and of no action at all."""
    others = jnp.maximum(1.0 - jnp.sum(jnp.exp(logps), axis=-1), CERTAIN)
    return jnp.concatenate([logps, jnp.log(others)[..., None]], axis=-1)


def expected_advantage(gains: Array, rest: Array, old_logps: Array) -> Array:
    """Return gain(a) - E gain under the old policy, ``[B, T, A + 1]``."""
    gains = jnp.concatenate([gains, rest[..., None]], axis=-1)
    mean = jnp.sum(jnp.exp(with_rest(old_logps)) * gains, axis=-1, keepdims=True)
    return gains - mean


def expected_policy_loss(
    logps: Array, old_logps: Array, advantages: Array, mask: Array, clip: Number
) -> Array:
    """-E_t sum_a pi_old(a) min(s_a A_a, clip(s_a, 1-eps, 1+eps) A_a), s = pi / pi_old.

    PPO's surrogate (Schulman et al., 2017) with the sum over actions in place of a
    sample (Ciosek and Whiteson, 2018, arXiv 1706.05374); ``clip`` is eps.

    Args:
      logps, old_logps: ``[B, T, A]``; advantages: ``[B, T, A + 1]``.
    """
    new, old = with_rest(logps), with_rest(old_logps)
    chex.assert_equal_shape([new, old, advantages])
    ratio = jnp.exp(new - old)
    clipped = jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
    least = jnp.minimum(ratio * advantages, clipped * advantages)
    return -masked_mean(jnp.sum(jnp.exp(old) * least, axis=-1), mask)
