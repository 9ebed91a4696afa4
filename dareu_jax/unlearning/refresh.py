"""The reward's index, built again while the policy moves away from the original."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dareu_jax.data.batches import TokenBatch
from dareu_jax.models import join
from dareu_jax.rl import masked_mean
from dareu_jax.unlearning.method import MethodInputs, RewardIndex

Array = jax.Array


class Seen(NamedTuple):
    """Parameters of the model that is attributed, and the index built at them."""

    params: Any
    index: Any


class View(NamedTuple):
    """What the reward looks at in an iteration.

    Attributes:
      attributed: trainable parameters that the index was last built at, ``{}`` where it
        is never built again.
      now: what scores are made with; before: what they were made with until now, where
        the index is a new one.
    """

    attributed: dict
    now: Seen
    before: Seen | None = None


def viewer(
    inputs: MethodInputs, reward: RewardIndex, every: int
) -> Callable[[int, dict, dict], View]:
    """Return ``(step, attributed, policy) -> View``; ``step`` counts from 0.

    The index is built again after ``every`` iterations; 0: never. Only ``attributed``
    is part of a method's state: the index is made from it where it is not at hand, so
    that a resumed run goes on with the same one.
    """
    original = Seen(inputs.reference, reward.index)

    def built(attributed: dict) -> Seen:
        params = join(inputs.frozen, attributed)
        return Seen(params, reward.rebuild(params))

    last = remember_last(built)

    def view(step: int, attributed: dict, policy: dict) -> View:
        if every == 0 or step < every:
            return View(attributed, original)
        if step % every:
            return View(attributed, last(attributed))
        before = original if step == every else last(attributed)
        return View(policy, last(policy), before)

    return view


def drift(
    attribute: Callable[..., Array], view: View, scores: Array, answers: TokenBatch
) -> dict[str, Array]:
    """Return how far a new index, if any, moved ``scores [B, T]`` of the answers."""
    if view.before is None:
        return {}
    before = attribute(**view.before._asdict(), answers=answers)
    return {"score_drift": mean_gap(scores, before, answers.response_mask)}


def remember_last(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return ``function``, called once for the same object several times in a row."""
    kept: list[Any] = []

    def call(argument: Any) -> Any:
        if not kept or kept[0] is not argument:
            kept[:] = argument, function(argument)
        return kept[1]

    return call


@jax.jit
def mean_gap(scores: Array, before: Array, mask: Array) -> Array:
    """Return the mean of |scores - before| where the mask is true."""
    return masked_mean(jnp.abs(scores - before), mask)
