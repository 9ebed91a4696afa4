"""What an update minimises: PPO on sampled tokens, or all likely tokens at once."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dareu_jax import models, rl
from dareu_jax.data.batches import TokenBatch
from dareu_jax.models import Decoder, Trunk, join, over_logits, token_logps, trunk_of
from dareu_jax.unlearning.renamed import Names, named_by
from dareu_jax.unlearning.setting import Experience, Numbers

Array = jax.Array
AnchorOf = Callable[[Sequence[Array]], Array]
"""From logits ``[B, t, V]`` of the KL anchor's models to those of the anchor."""


class Objective(NamedTuple):
    """What of a row decides which loss an update minimises; see `DareuConfig`.

    Attributes:
      model: of the policy; anchor_models: of the KL anchor.
      learn: ``ppo`` from sampled tokens; from all likely ones ``gradient`` or
        ``teacher``.
    """

    model: Decoder
    anchor_models: tuple[Decoder, ...]
    learn: str
    kl_anchor: str
    kl_in: str
    kl_direction: str
    value_gradient: str


def policy_and_value(
    model: Decoder,
    value_gradient: str,
    frozen: dict,
    trainable: dict,
    answers: TokenBatch,
) -> tuple[Trunk, Array]:
    """Return the policy's trunk and, from the same one, values V(c_t) ``[B, T]``.

    Without a value head they are zeros.
    """
    trunk = trunk_of(model, join(frozen, trainable["decoder"]), answers)
    if "value_head" not in trainable:
        return trunk, jnp.zeros(answers.response.shape, jnp.float32)
    hidden = trunk.hidden
    if value_gradient == "head":
        hidden = jax.lax.stop_gradient(hidden)
    values = models.apply_head(1, trainable["value_head"], hidden)[..., 0]
    return trunk, jnp.where(answers.response_mask, values, 0.0)


def compare(
    policy: Array,
    *given: Array,
    anchor_of: AnchorOf,
    estimator: str = "full",
    direction: str = "reverse",
) -> tuple[Array, Array]:
    """Return log pi(y_t) and the KL to the anchor ``[B, t]``.

    ``given``: logits ``[B, t, V]`` of the anchor, or of the two whose mixture it is,
    and then the tokens. The KL is KL(pi || anchor), or KL(anchor || pi) ``forward``.
    """
    *anchors, tokens = given
    logps, anchor = token_logps(policy, tokens), anchor_of(anchors)
    if estimator == "sampled":
        return logps, rl.sampled_kl(logps, token_logps(anchor, tokens))
    return logps, kl_to(anchor, policy, direction)


def kl_to(anchor: Array, policy: Array, direction: str) -> Array:
    """Return KL(pi || anchor) ``[B, t]``, or KL(anchor || pi) ``forward``."""
    if direction == "forward":
        return rl.full_kl(anchor, policy)
    return rl.full_kl(policy, anchor)


def one_anchor(
    anchors: Sequence[Array], *, share: Array, is_name: Array | None = None
) -> Array:
    """Return logits ``[B, t, V]`` of the anchor, which may be made of two.

    They are a mixture, or, with names ``[B, V]``, the names of the first and the rest
    of the second.
    """
    if is_name is not None:
        return rl.with_names(anchors[0], anchors[1], is_name)
    if len(anchors) == 2:
        return rl.mixed(anchors[0], anchors[1], share)
    return anchors[0]


def ppo_loss(
    *,
    objective: Objective,
    numbers: Numbers,
    names: Names | None,
    frozen: dict,
    trainable: dict,
    anchor: Any,
    experience: Experience,
) -> tuple[Array, dict[str, Array]]:
    """Return w (-J + c_V L_V) (+ c_KL KL to the anchor, where that is in the loss)."""
    given, clip, answers = experience, numbers.clip, experience.answers
    mask = answers.response_mask
    policy, values = policy_and_value(
        objective.model, objective.value_gradient, frozen, trainable, answers
    )
    said = functools.partial(
        over_logits, tokens=answers.response, temperature=numbers.temperature
    )
    metrics = {}
    if objective.kl_in == "loss":
        score = functools.partial(
            compare,
            anchor_of=anchor_with(objective, numbers, names, answers),
            direction=objective.kl_direction,
        )
        logps, kl = said(score, [policy, *held_by(objective, anchor, given)])
        metrics["kl_anchor"] = rl.masked_mean(kl, mask)
    else:
        logps = said(token_logps, [policy])
    loss = rl.policy_loss(logps, given.old_logps, given.advantages, mask, clip)
    clipped = rl.clip_fraction(logps, given.old_logps, mask, clip)
    metrics |= {"policy_loss": loss, "clip_fraction": clipped}
    if "value_head" in trainable:
        old, returns = given.old_values, given.returns
        metrics["value_loss"] = rl.value_loss(values, old, returns, mask, clip)
        loss += numbers.value_coef * metrics["value_loss"]
    loss *= numbers.policy_weight
    if objective.kl_in == "loss":
        loss += numbers.kl_coef * metrics["kl_anchor"]
    return loss, metrics


def held_by(
    objective: Objective, anchor: Sequence[dict], experience: Experience
) -> list[Trunk]:
    """Return the trunks of the KL anchor's models, with parameters ``anchor``."""
    assert experience.anchor is not None
    each = zip(objective.anchor_models, anchor, experience.anchor, strict=True)
    return [Trunk(*one) for one in each]


def anchor_with(
    objective: Objective, numbers: Numbers, names: Names | None, answers: TokenBatch
) -> AnchorOf:
    """Return `one_anchor` as a row has it, with the names that its prompts have."""
    is_name = None
    if objective.kl_anchor == "renamed":
        assert names is not None
        is_name = named_by(names, answers)
    return functools.partial(one_anchor, share=numbers.kl_share, is_name=is_name)


def teach(
    policy: Array, *given: Any, anchor_of: AnchorOf, kl_coef: Array, weight: Array
) -> tuple[Array, Array]:
    """Return the KL from teacher to policy ``[B, t]``, and from policy to anchor.

    The teacher is the anchor tilted by the rewards of all actions, p(v) exp(w gain(v) /
    c_KL): what PPO with that anchor and these rewards aims at. ``given``: logits of the
    anchor's models, then `Actions`.
    """
    *anchors, actions = given
    anchor = anchor_of(anchors)
    gains, rest = (weight * x / kl_coef for x in (actions.gains, actions.rest))
    teacher = rl.tilted(anchor, actions.tokens, gains, rest)
    return rl.full_kl(teacher, policy), rl.full_kl(policy, anchor)


def of_all(
    policy: Array, *given: Any, anchor_of: AnchorOf, direction: str
) -> tuple[Array, Array]:
    """Return log-probs of all actions ``[B, t, A]``, and the KL to the anchor."""
    *anchors, actions = given
    logps = jax.nn.log_softmax(policy, axis=-1)
    own = jnp.take_along_axis(logps, actions.tokens, axis=-1)
    return own, kl_to(anchor_of(anchors), policy, direction)


def all_actions_loss(
    *,
    objective: Objective,
    numbers: Numbers,
    names: Names | None,
    frozen: dict,
    trainable: dict,
    anchor: Any,
    experience: Experience,
) -> tuple[Array, dict[str, Array]]:
    """Return KL(teacher || pi), or w x expected policy loss + c_KL KL to the anchor."""
    answers, actions = experience.answers, experience.actions
    assert actions is not None
    mask = answers.response_mask
    policy = trunk_of(objective.model, join(frozen, trainable["decoder"]), answers)
    trunks = [policy, *held_by(objective, anchor, experience)]
    said = functools.partial(
        over_logits, tokens=actions, temperature=numbers.temperature
    )
    anchor_of = anchor_with(objective, numbers, names, answers)
    if objective.learn == "teacher":
        how = functools.partial(
            teach,
            anchor_of=anchor_of,
            kl_coef=numbers.kl_coef,
            weight=numbers.policy_weight,
        )
        taught, held = (rl.masked_mean(x, mask) for x in said(how, trunks))
        return taught, {"policy_loss": taught, "kl_anchor": held}
    direction = objective.kl_direction
    how = functools.partial(of_all, anchor_of=anchor_of, direction=direction)
    logps, kl = said(how, trunks)
    advantages = rl.expected_advantage(actions.gains, actions.rest, actions.logps)
    loss = rl.expected_policy_loss(logps, actions.logps, advantages, mask, numbers.clip)
    held = rl.masked_mean(kl, mask)
    total = numbers.policy_weight * loss + numbers.kl_coef * held
    return total, {"policy_loss": loss, "kl_anchor": held}


LOSSES = {"ppo": ppo_loss, "gradient": all_actions_loss, "teacher": all_actions_loss}
"""By `Objective.learn`."""
