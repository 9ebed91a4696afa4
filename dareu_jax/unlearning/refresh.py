"""The reward's index, built again while the policy moves away from the original."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dareu_jax.corpus.batches import TokenBatch
from dareu_jax.models import join
from dareu_jax.reinforcement import masked_mean
from dareu_jax.unlearning.method import MethodInputs, RewardIndex

Array = jax.Array
Seen = tuple[Any, Any]
"""Parameters of the model that is attributed, and the index built at them."""


class FreshIndex:
    """What the reward looks at: the original, or the policy of a while ago.

    Only the parameters are part of a method's state; the index is made from them where
    it is not at hand, so that a resumed run goes on with the same one.

    Args:
      world: the original; reward: its index, and how another is built.
      every: iterations from one index to the next; 0: the original's throughout.
    """

    def __init__(self, world: MethodInputs, reward: RewardIndex, every: int):
        self.world, self.reward, self.every = world, reward, every
        self._made: tuple[Any, Seen] | None = None
        self._before: Seen | None = None

    def first(self, decoder: dict) -> dict:
        """The part of a method's first state that says where the index stands."""
        return decoder if self.every else {}

    def is_due(self, step: int) -> bool:
        """Whether iteration ``step`` from 0 on builds the index again."""
        return self.every > 0 and step > 0 and step % self.every == 0

    def at(self, step: int, attributed: dict, policy: dict) -> tuple[dict, Seen]:
        """Where the index stands at iteration ``step``, and what to attribute with.

        Args:
          attributed: trainable parameters that it was last built at; policy: today's.
        """
        if self.every == 0 or step < self.every:
            return attributed, (self.world.reference, self.reward.index)
        if self.is_due(step):
            self._before = self._seen(step - 1, attributed)
            attributed = policy
        return attributed, self._seen(step, attributed)

    def _seen(self, step: int, attributed: dict) -> Seen:
        if step < self.every:
            return self.world.reference, self.reward.index
        if self._made is None or self._made[0] is not attributed:
            params = join(self.world.frozen, attributed)
            self._made = attributed, (params, self.reward.rebuild(params))
        return self._made[1]

    def drift(
        self,
        step: int,
        attribute: Callable[[Any, Any, TokenBatch], Array],
        scores: Array,
        answers: TokenBatch,
    ) -> dict[str, Array]:
        """How far the scores of the same answers moved by the new index, where due.

        Args:
          attribute: ``(params, index, answers) -> [B, T]``; scores: by the new index.
        """
        if not self.is_due(step) or self._before is None:
            return {}
        before, self._before = attribute(*self._before, answers), None
        return {"score_drift": mean_gap(scores, before, answers.response_mask)}


@jax.jit
def mean_gap(scores: Array, before: Array, mask: Array) -> Array:
    """mean over true entries of |scores - before|, all ``[B, T]``."""
    return masked_mean(jnp.abs(scores - before), mask)
