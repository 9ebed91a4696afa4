"""The phases of one DareU iteration: pure functions, one program each for all rows."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dareu_jax import models, rl
from dareu_jax.data.batches import TokenBatch
from dareu_jax.models import (
    Decoder,
    Rollout,
    Trunk,
    join,
    over_logits,
    token_logps,
    trunk_of,
)
from dareu_jax.parallel import Layouts
from dareu_jax.training.accumulation import accumulated, after, rows_at_once
from dareu_jax.training.finetune import response_tokens
from dareu_jax.training.optimiser import updated
from dareu_jax.unlearning.setting import Experience, Judged, Numbers, anchors_of

Array = jax.Array


def rollout(
    *,
    model: Decoder,
    layouts: Layouts,
    max_new_tokens: int,
    temperature: float,
    stop_ids: tuple[int, ...],
    frozen: dict,
    policy: dict,
    prompts: TokenBatch,
    key: Array,
) -> Rollout:
    """Return one sampled answer per row.

    ``frozen`` parameters are in the layout of a rollout; ``policy`` is moved there.
    """
    prompt, prompt_mask = layouts.rows((prompts.prompt, prompts.prompt_mask))
    with layouts.sampling():
        said = models.generate(
            model,
            join(frozen, layouts.params(policy)),
            prompt,
            prompt_mask,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            stop_ids=stop_ids,
            key=layouts.key(key),
        )
    return layouts.back(said)


@functools.partial(jax.jit, static_argnames=("prefix_score", "columns"))
@jax.named_scope("attribute")
def attribute(
    *,
    prefix_score: Callable[..., Array],
    columns: tuple[int, ...],
    forget_owner: Array,
    params: dict,
    index: Any,
    answers: TokenBatch,
) -> Array:
    """Return DA(i, y[:t]) ``[B, T]`` of the owners an answer must not come from.

    They are those of ``columns``; none: the owner of the record. ``prefix_score``: see
    `Kernel`.
    """
    scores = prefix_score(params, index, answers)
    if not columns:
        own = forget_owner[answers.index]
        return jnp.take_along_axis(scores, own[:, None, None], axis=2)[..., 0]
    return jnp.sum(jnp.take(scores, jnp.asarray(columns, jnp.int32), axis=2), axis=-1)


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
    share: Array,
    estimator: str = "full",
    direction: str = "reverse",
) -> tuple[Array, Array]:
    """Return log pi(y_t) and the KL to the anchor ``[B, t]``.

    ``given``: logits ``[B, t, V]`` of the anchor, or of the two whose mixture it is,
    and then the tokens. The KL is KL(pi || anchor), or KL(anchor || pi) ``forward``.
    """
    *anchors, tokens = given
    logps, anchor = token_logps(policy, tokens), anchors[0]
    if len(anchors) == 2:
        anchor = rl.mixed(anchors[0], anchors[1], share)
    if estimator == "sampled":
        return logps, rl.sampled_kl(logps, token_logps(anchor, tokens))
    if direction == "forward":
        return logps, rl.full_kl(anchor, policy)
    return logps, rl.full_kl(policy, anchor)


@functools.partial(
    jax.jit,
    static_argnames=(
        "model",
        "prior_model",
        "kl_anchor",
        "kl_in",
        "kl_estimator",
        "logps_of",
    ),
)
@jax.named_scope("judge")
def judge(
    *,
    model: Decoder,
    prior_model: Decoder | None,
    kl_anchor: str,
    kl_in: str,
    kl_estimator: str,
    logps_of: tuple[str, ...],
    numbers: Numbers,
    frozen: dict,
    trainable: dict,
    behaviour: dict,
    reference: dict,
    prior: Any,
    base: Any,
    answers: TokenBatch,
) -> Judged:
    """Return what is read of policy, KL anchor, prior and reference on the answers."""
    params: dict[str, tuple[Any, Any]] = {
        "prior": (prior_model, prior),
        "reference": (model, reference),
        "behaviour": (model, join(frozen, behaviour)),
        "base": (model, base),
    }
    names = anchors_of(kl_anchor)
    trunks = {
        name: trunk_of(*params[name], answers)
        for name in dict.fromkeys((*names, *logps_of))
    }
    policy, values = policy_and_value(model, "trunk", frozen, trainable, answers)
    anchors = [trunks[name] for name in names]
    said = functools.partial(over_logits, tokens=answers.response)
    found = Judged(values)
    if kl_in == "loss":
        found = found._replace(anchor=tuple(trunk.hidden for trunk in anchors))
    else:
        share = numbers.kl_share
        score = functools.partial(compare, estimator=kl_estimator, share=share)
        logps, kl = said(score, [policy, *anchors], temperature=numbers.temperature)
        found = found._replace(logps=logps, kl=kl)
    if "reference" in logps_of:
        trunk = trunks["reference"]
        own = said(token_logps, [policy], temperature=numbers.temperature)
        ref = said(token_logps, [trunk], temperature=numbers.temperature)
        found = found._replace(logps=own, ref_logps=ref)
    if "prior" in logps_of:
        logps = said(token_logps, [trunks["prior"]])
        logps = jnp.where(answers.response_mask, logps, 0.0)
        found = found._replace(prior_logps=logps)
    return found


@functools.partial(
    jax.jit, static_argnames=("slices", "shape", "prior_shape", "combine")
)
@jax.named_scope("reward")
def reward(
    *,
    slices: tuple[int, int | None],
    shape: str,
    prior_shape: str,
    combine: str,
    numbers: Numbers,
    scores: Array,
    judged: Judged,
    mask: Array,
) -> Array:
    """Return rewards ``[B, T]``: shaped attribution, prior bonus, KL penalty.

    ``slices``: how many an answer has, and of which length: see `rl.kappa_of`.
    """
    segments = rl.segment_scores(scores, mask, rl.kappa_of(mask, *slices))
    penalty = rl.chi(segments, numbers.c_seg, numbers.eps)
    bonus = jnp.zeros_like(penalty)
    if judged.prior_logps is not None:
        bonus = rl.prior_bonus(judged.prior_logps, mask, numbers.prior_floor)
    if combine == "product":
        rewards = rl.token_rewards((1.0 + penalty) * bonus, mask, shape)
    else:
        rewards = numbers.attribution_weight * rl.token_rewards(penalty, mask, shape)
        if prior_shape != "none":
            rewards += numbers.prior_weight * rl.token_rewards(bonus, mask, prior_shape)
    if judged.kl is not None:
        rewards -= numbers.kl_coef * jnp.where(mask, judged.kl, 0.0)
    return rewards


def group(rewards: Array, mask: Array, size: int) -> tuple[Array, Array]:
    """Return the group's advantages of the summed rewards, and the sums."""
    whole = jnp.sum(rewards, axis=1)
    advantages = rl.group_advantage(whole, mask, size)
    return advantages, jnp.where(mask, whole[:, None], 0.0)


@functools.partial(jax.jit, static_argnames=("group_size", "whiten"))
@jax.named_scope("advantage")
def advantage(
    *,
    group_size: int,
    whiten: bool,
    numbers: Numbers,
    rewards: Array,
    rollout: Rollout,
    judged: Judged,
    answers: TokenBatch,
) -> Experience:
    """Return what an update learns from; the old log-probs are the rollout's own.

    ``group_size``: answers that are compared with each other; 0: with the value head's.
    """
    mask = answers.response_mask
    if group_size:
        advantages, returns = group(rewards, mask, group_size)
    else:
        advantages, returns = rl.gae(
            rewards, judged.values, mask, numbers.gamma, numbers.gae_lambda
        )
    if whiten:
        advantages = rl.whiten(advantages, mask)
    return Experience(
        answers=answers,
        old_logps=rollout.logps,
        old_values=judged.values,
        advantages=advantages,
        returns=returns,
        anchor=judged.anchor,
    )


def ppo_loss(
    *,
    model: Decoder,
    anchor_models: tuple[Decoder, ...],
    kl_in: str,
    kl_direction: str,
    value_gradient: str,
    numbers: Numbers,
    frozen: dict,
    trainable: dict,
    anchor: Any,
    experience: Experience,
) -> tuple[Array, dict[str, Array]]:
    """Return -J + c_V L_V (+ c_KL KL to the anchor, where that is in the loss)."""
    given, clip, answers = experience, numbers.clip, experience.answers
    mask = answers.response_mask
    policy, values = policy_and_value(model, value_gradient, frozen, trainable, answers)
    said = functools.partial(
        over_logits, tokens=answers.response, temperature=numbers.temperature
    )
    metrics = {}
    if kl_in == "loss":
        assert given.anchor is not None
        each = zip(anchor_models, anchor, given.anchor, strict=True)
        held = [Trunk(*one) for one in each]
        score = functools.partial(
            compare, share=numbers.kl_share, direction=kl_direction
        )
        logps, kl = said(score, [policy, *held])
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
    if kl_in == "loss":
        loss += numbers.kl_coef * metrics["kl_anchor"]
    return loss, metrics


@functools.partial(
    jax.jit,
    static_argnames=(
        "model",
        "anchor_models",
        "kl_in",
        "kl_direction",
        "value_gradient",
        "optimiser",
        "microbatch_size",
    ),
    donate_argnames=("trainable", "opt_state"),
)
@jax.named_scope("update")
def update(
    *,
    model: Decoder,
    anchor_models: tuple[Decoder, ...],
    kl_in: str,
    kl_direction: str,
    value_gradient: str,
    optimiser: optax.GradientTransformation,
    microbatch_size: int | None,
    numbers: Numbers,
    frozen: dict,
    trainable: dict,
    opt_state: optax.OptState,
    anchor: Any,
    experience: Experience,
    reference: Any = None,
    retain: TokenBatch | None = None,
) -> tuple[dict, optax.OptState, dict[str, Array]]:
    """Return what one clipped PPO step makes of parameters and optimiser state.

    With ``retain`` it is one step on -J + lambda_dis KL(reference || policy).
    """

    def loss_fn(trainable: dict, rows: Experience) -> tuple[Array, dict[str, Array]]:
        return ppo_loss(
            model=model,
            anchor_models=anchor_models,
            kl_in=kl_in,
            kl_direction=kl_direction,
            value_gradient=value_gradient,
            numbers=numbers,
            frozen=frozen,
            trainable=trainable,
            anchor=anchor,
            experience=rows,
        )

    grads, metrics = accumulated(
        loss_fn,
        trainable,
        experience,
        size=rows_at_once(microbatch_size, model.cfg, experience.answers),
        weight=lambda rows: response_tokens(rows.answers),
    )
    if retain is not None:
        kept, held = after(
            grads,
            lambda: distillation(
                model=model,
                microbatch_size=microbatch_size,
                numbers=numbers,
                frozen=frozen,
                trainable=trainable,
                reference=reference,
                retain=retain,
            ),
        )
        grads, metrics = jax.tree.map(jnp.add, grads, kept), metrics | held
    return *updated(optimiser, trainable, opt_state, grads), metrics


def distillation(
    *,
    model: Decoder,
    microbatch_size: int | None,
    numbers: Numbers,
    frozen: dict,
    trainable: dict,
    reference: Any,
    retain: TokenBatch,
) -> tuple[dict, dict[str, Array]]:
    """Return the gradient of lambda_dis KL(reference || policy), and what it is."""

    def score(taught: Array, logits: Array, tokens: Array):
        hit = jnp.argmax(logits, axis=-1) == tokens
        return rl.full_kl(taught, logits), hit.astype(jnp.float32)

    def loss_fn(trainable, rows):
        teacher, mask = trunk_of(model, reference, rows), rows.response_mask
        pupil = trunk_of(model, join(frozen, trainable["decoder"]), rows)
        kl, hit = over_logits(score, [teacher, pupil], rows.response)
        loss, accuracy = rl.masked_mean(kl, mask), rl.masked_mean(hit, mask)
        metrics = {"distillation_loss": loss, "retain_accuracy": accuracy}
        return numbers.lambda_dis * loss, metrics

    return accumulated(
        loss_fn,
        trainable,
        retain,
        size=rows_at_once(microbatch_size, model.cfg, retain),
        weight=response_tokens,
    )


@functools.partial(
    jax.jit,
    static_argnames=("model", "optimiser", "microbatch_size"),
    donate_argnames=("trainable", "opt_state"),
)
@jax.named_scope("distil")
def distil(
    *,
    model: Decoder,
    optimiser: optax.GradientTransformation,
    microbatch_size: int | None,
    numbers: Numbers,
    frozen: dict,
    trainable: dict,
    opt_state: optax.OptState,
    reference: dict,
    retain: TokenBatch,
) -> tuple[dict, optax.OptState, dict[str, Array]]:
    """Return what a step on lambda_dis KL(reference || policy) makes of the same."""
    grads, metrics = distillation(
        model=model,
        microbatch_size=microbatch_size,
        numbers=numbers,
        frozen=frozen,
        trainable=trainable,
        reference=reference,
        retain=retain,
    )
    return *updated(optimiser, trainable, opt_state, grads), metrics
