"""PPO, value and divergence losses: means over response tokens.

Log-probabilities, values, advantages and returns are ``[B, T]`` float32, masks
``[B, T]`` bool.
"""

import chex
import jax
import jax.numpy as jnp

from dareu_jax.rl.advantage import Number, masked_mean

Array = jax.Array
NEVER = -1e9
"""The log-prob of a token that is left out of a sum."""


def policy_loss(
    logps: Array, old_logps: Array, advantages: Array, mask: Array, clip: Number
) -> Array:
    """-E_t min(s_t A_t, clip(s_t, 1-eps, 1+eps) A_t), s = pi / pi_old.

    PPO's clipped surrogate (Schulman et al., 2017), to be minimised; ``clip`` is eps.
    """
    chex.assert_rank(mask, 2)
    chex.assert_equal_shape([logps, old_logps, advantages, mask])
    chex.assert_type([logps, old_logps, advantages, mask], [float, float, float, bool])
    ratio = jnp.exp(jnp.where(mask, logps - old_logps, 0.0))
    clipped = jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
    return -masked_mean(jnp.minimum(ratio * advantages, clipped * advantages), mask)


def clip_fraction(logps: Array, old_logps: Array, mask: Array, clip: Number) -> Array:
    """Share of tokens whose ratio lies outside 1 +- clip."""
    chex.assert_rank(mask, 2)
    chex.assert_equal_shape([logps, old_logps, mask])
    chex.assert_type([logps, old_logps, mask], [float, float, bool])
    ratio = jnp.exp(jnp.where(mask, logps - old_logps, 0.0))
    return masked_mean((jnp.abs(ratio - 1.0) > clip).astype(jnp.float32), mask)


def value_loss(
    values: Array, old_values: Array, returns: Array, mask: Array, clip: Number
) -> Array:
    """1/2 E_t max((V - R)^2, (clip(V, V_old +- eps) - R)^2), PPO's clipped form."""
    chex.assert_rank(mask, 2)
    chex.assert_equal_shape([values, old_values, returns, mask])
    chex.assert_type([values, old_values, returns, mask], [float, float, float, bool])
    near = old_values + jnp.clip(values - old_values, -clip, clip)
    worst = jnp.maximum((values - returns) ** 2, (near - returns) ** 2)
    return 0.5 * masked_mean(worst, mask)


def sampled_kl(logps: Array, anchor_logps: Array) -> Array:
    """log pi(y_t) - log anchor(y_t): the one-sample estimate of KL(pi || anchor)."""
    chex.assert_equal_shape([logps, anchor_logps])
    chex.assert_type([logps, anchor_logps], float)
    return logps - anchor_logps


def full_kl(logits: Array, anchor_logits: Array) -> Array:
    """KL(softmax(logits) || softmax(anchor)) over the vocabulary, ``[B, T]``.

    With the policy first it anchors; with the reference first it distils (DareU).
    """
    chex.assert_rank(logits, 3)
    chex.assert_equal_shape([logits, anchor_logits])
    chex.assert_type([logits, anchor_logits], float)
    logp = jax.nn.log_softmax(logits, axis=-1)
    anchor = jax.nn.log_softmax(anchor_logits, axis=-1)
    return jnp.sum(jnp.exp(logp) * (logp - anchor), axis=-1)


def mixed(logits: Array, others: Array, share: Number) -> Array:
    """log((1 - s) p + s q) over the vocabulary, ``[B, T, V]``, s = ``share``.

    p and q are the softmax of ``logits`` and of ``others``, ``[B, T, V]``.
    """
    chex.assert_rank(logits, 3)
    chex.assert_equal_shape([logits, others])
    chex.assert_type([logits, others], float)
    first = jnp.log1p(-share) + jax.nn.log_softmax(logits, axis=-1)
    second = jnp.log(share) + jax.nn.log_softmax(others, axis=-1)
    return jnp.logaddexp(first, second)


def with_names(logits: Array, others: Array, is_name: Array) -> Array:
    """log p(v) of names, log (1 - p(names)) q(v | no name) of the rest, ``[B, T, V]``.

    p and q are the softmax of ``logits`` and of ``others``, ``[B, T, V]``; ``is_name``
    is ``[B, V]`` bool.
    """
    chex.assert_rank([logits, others, is_name], [3, 3, 2])
    chex.assert_type([logits, others, is_name], [float, float, bool])
    is_name = is_name[:, None]
    first, second = (jax.nn.log_softmax(x, axis=-1) for x in (logits, others))
    kept = jnp.where(is_name, NEVER, first)
    left = jax.nn.logsumexp(kept, axis=-1, keepdims=True)
    rest = jnp.where(is_name, NEVER, second)
    rest = rest - jax.nn.logsumexp(rest, axis=-1, keepdims=True)
    return jnp.where(is_name, first, left + rest)


def cross_entropy(logps: Array, mask: Array) -> Array:
    """-E_t log p(y_t): mean over response tokens."""
    chex.assert_rank([logps, mask], 2)
    chex.assert_type([logps, mask], [float, bool])
    return -masked_mean(logps, mask)
