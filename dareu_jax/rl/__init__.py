"""Equations of reward shaping, advantages and losses; nothing else."""

from dareu_jax.rl.advantage import gae, group_advantage, masked_mean, whiten
from dareu_jax.rl.all_actions import (
    expected_advantage,
    expected_policy_loss,
    gains_of,
    likeliest,
    tilted,
)
from dareu_jax.rl.losses import (
    clip_fraction,
    cross_entropy,
    full_kl,
    mixed,
    policy_loss,
    sampled_kl,
    value_loss,
    with_names,
)
from dareu_jax.rl.reward import (
    chi,
    kappa_of,
    on_last_token,
    prior_bonus,
    running_mean,
    segment_length,
    segment_scores,
    token_rewards,
)
