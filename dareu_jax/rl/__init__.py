"""Equations of reward shaping, advantages and losses; nothing else."""

from dareu_jax.rl.advantage import gae, group_advantage, masked_mean, whiten
from dareu_jax.rl.losses import (
    clip_fraction,
    cross_entropy,
    full_kl,
    policy_loss,
    sampled_kl,
    value_loss,
)
from dareu_jax.rl.reward import (
    chi,
    mean_likelihood,
    on_last_token,
    prior_bonus,
    running_mean,
    segment_length,
    segment_scores,
    token_rewards,
)

__all__ = [
    "chi",
    "clip_fraction",
    "cross_entropy",
    "full_kl",
    "gae",
    "group_advantage",
    "masked_mean",
    "mean_likelihood",
    "on_last_token",
    "policy_loss",
    "prior_bonus",
    "running_mean",
    "sampled_kl",
    "segment_length",
    "segment_scores",
    "token_rewards",
    "value_loss",
    "whiten",
]
