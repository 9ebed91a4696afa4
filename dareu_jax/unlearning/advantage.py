"""How an iteration learns from rewards, by the name in ``dareu.advantage``."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from dareu_jax import reinforcement as rl
from dareu_jax.models import apply_head, init_head
from dareu_jax.unlearning.dareu_options import DareuConfig

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Advantage:
    """Pure functions; ``hp`` is the section ``dareu``, arrays are ``[B, T]`` float32.

    Attributes:
      init: ``(embed, *, key) -> dict``, what is trained beside the decoder.
      values: ``(hp, trainable, hidden [B, T, D], mask) -> V(c_t)``, 0 without a value
        head.
      advantages: ``(hp, rewards, values, mask) -> (advantages, returns)``.
      losses: ``(hp, values, old_values, returns, mask) -> dict`` of losses by name,
        each counted ``value_coef`` times.
    """

    init: Callable[..., dict]
    values: Callable[..., Array]
    advantages: Callable[..., tuple[Array, Array]]
    losses: Callable[..., dict[str, Array]]


def init_value_head(embed: int, *, key: Array) -> dict:
    """Return a value head that says 0."""
    return {"value_head": init_head(1, embed, key=key)}


def head_values(hp: DareuConfig, trainable: dict, hidden: Array, mask: Array) -> Array:
    """Return V(c_t) of the value head; ``value_gradient`` says how far it teaches."""
    if hp.value_gradient == "head":
        hidden = jax.lax.stop_gradient(hidden)
    values = apply_head(1, trainable["value_head"], hidden)[..., 0]
    return jnp.where(mask, values, 0.0)


def gae_advantages(
    hp: DareuConfig, rewards: Array, values: Array, mask: Array
) -> tuple[Array, Array]:
    """Return `reinforcement.gae` with gamma and lambda of the section."""
    return rl.gae(rewards, values, mask, hp.gamma, hp.gae_lambda)


def head_losses(
    hp: DareuConfig, values: Array, old_values: Array, returns: Array, mask: Array
) -> dict[str, Array]:
    """Return the loss of the value head."""
    return {"value_loss": rl.value_loss(values, old_values, returns, mask, hp.clip)}


def no_values(hp: DareuConfig, trainable: dict, hidden: Array, mask: Array) -> Array:
    """Return zeros: nothing is predicted."""
    return jnp.zeros(mask.shape, jnp.float32)


def group_advantages(
    hp: DareuConfig, rewards: Array, values: Array, mask: Array
) -> tuple[Array, Array]:
    """Return `reinforcement.group_advantage` of each response's summed rewards."""
    whole = jnp.sum(rewards, axis=1)
    advantages = rl.group_advantage(whole, mask, hp.samples_per_prompt)
    return advantages, jnp.where(mask, whole[:, None], 0.0)


ADVANTAGES = {
    "gae": Advantage(init_value_head, head_values, gae_advantages, head_losses),
    "group": Advantage(
        init=lambda embed, *, key: {},
        values=no_values,
        advantages=group_advantages,
        losses=lambda hp, values, old_values, returns, mask: {},
    ),
}
