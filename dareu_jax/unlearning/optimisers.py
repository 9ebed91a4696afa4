"""Which optimiser steps on PPO's loss, which on distillation, and how often."""

from typing import NamedTuple

import optax

from dareu_jax.training.optimiser import (
    AdamwState,
    Optimiser,
    moments_of,
    optimiser_of,
    with_moments,
)
from dareu_jax.unlearning.dareu_options import DareuConfig


class Optimisers(NamedTuple):
    """State of PPO's optimiser, and distillation's own moments; None: it shares them.

    Masters of parameters below float32 are in the first, and both step on them.
    """

    ppo: optax.OptState
    distil: AdamwState | None = None

    @property
    def of_distillation(self) -> optax.OptState:
        """The state that a distillation step begins with."""
        return self.ppo if self.distil is None else with_moments(self.ppo, self.distil)

    def distilled(self, state: optax.OptState) -> "Optimisers":
        """Return both after a distillation step has left ``state``."""
        if self.distil is None:
            return Optimisers(state)
        ppo = with_moments(state, moments_of(self.ppo))
        return Optimisers(ppo, moments_of(state))


def of_state(opt_state: optax.OptState) -> Optimisers:
    """Return `Optimisers` of what a method's state has."""
    is_both = isinstance(opt_state, Optimisers)
    return opt_state if is_both else Optimisers(opt_state)


def to_state(both: Optimisers) -> optax.OptState:
    """Return what a method's state has of `Optimisers`: PPO's alone where shared."""
    return both.ppo if both.distil is None else both


def ppo_updates(hp: DareuConfig) -> int:
    """Return how often PPO's optimiser steps in an iteration."""
    shared = hp.retain_updates if hp.retain_step == "alternate" else 0
    return (hp.updates_per_pass + shared) * hp.updates_per_batch


def distiller_of(hp: DareuConfig, updates: int) -> Optimiser | None:
    """Return the optimiser of distillation alone; None: it shares PPO's.

    Its learning rate is lambda_dis times PPO's. A factor of the loss makes a step of
    gradient descent so much longer, but Adam divides by the size of the gradients, and
    no step of its own would change.
    """
    if hp.retain_step != "separate":
        return None
    rate = hp.lambda_dis * hp.learning_rate
    own = hp.model_copy(update={"learning_rate": rate})
    return optimiser_of(own, updates, decay=False)
