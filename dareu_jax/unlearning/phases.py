"""The phases of one DareU iteration: pure functions, one program each for all rows."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dareu_jax import models, rl
from dareu_jax.data.batches import TokenBatch
from dareu_jax.models import Decoder, Rollout, join, over_logits, token_logps, trunk_of
from dareu_jax.parallel import Layouts
from dareu_jax.training.accumulation import accumulated, after, rows_at_once
from dareu_jax.training.finetune import response_tokens
from dareu_jax.training.optimiser import updated
from dareu_jax.unlearning.objectives import (
    LOSSES,
    Objective,
    compare,
    one_anchor,
    policy_and_value,
)
from dareu_jax.unlearning.renamed import Names
from dareu_jax.unlearning.setting import (
    Actions,
    Experience,
    Judged,
    Numbers,
    anchors_of,
)

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
    return of_withdrawn(scores, columns, forget_owner[answers.index])


def of_withdrawn(scores: Array, columns: tuple[int, ...], own: Array) -> Array:
    """Return ``scores [B, ..., O]`` summed over ``columns``; none: of owner ``own``."""
    if columns:
        at = jnp.asarray(columns, jnp.int32)
        return jnp.sum(jnp.take(scores, at, axis=-1), axis=-1)
    at = own.reshape(-1, *[1] * (scores.ndim - 1))
    return jnp.take_along_axis(scores, at, axis=-1)[..., 0]


@functools.partial(
    jax.jit,
    static_argnames=(
        "model",
        "prior_model",
        "kl_anchor",
        "kl_in",
        "kl_estimator",
        "logps_of",
        "likely",
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
    likely: int,
    numbers: Numbers,
    frozen: dict,
    trainable: dict,
    behaviour: dict,
    reference: dict,
    prior: Any,
    base: Any,
    answers: TokenBatch,
    renamed: TokenBatch | None = None,
) -> Judged:
    """Return what is read of policy, KL anchor, prior and reference on the answers.

    ``likely``: the policy's likeliest tokens of every place that are read; 0: none.
    ``renamed`` are the answers under another name, where the anchor reads them.
    """
    read: dict[str, tuple[Any, Any, Any]] = {
        "prior": (prior_model, prior, answers),
        "reference": (model, reference, answers),
        "behaviour": (model, join(frozen, behaviour), answers),
        "base": (model, base, answers),
        "renamed": (model, reference, renamed),
    }
    names = anchors_of(kl_anchor)
    wanted = dict.fromkeys((*names, *logps_of))
    trunks = {name: trunk_of(*read[name]) for name in wanted}
    policy, values = policy_and_value(model, "trunk", frozen, trainable, answers)
    anchors = [trunks[name] for name in names]
    said = functools.partial(over_logits, tokens=answers.response)
    found = Judged(values)
    if kl_in == "loss":
        found = found._replace(anchor=tuple(trunk.hidden for trunk in anchors))
    else:
        anchor_of = functools.partial(one_anchor, share=numbers.kl_share)
        score = functools.partial(compare, estimator=kl_estimator, anchor_of=anchor_of)
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
    if likely:
        best = functools.partial(likeliest, count=likely)
        top = said(best, [policy], temperature=numbers.temperature)
        found = found._replace(likely=top)
    return found


def likeliest(logits: Array, tokens: Array, count: int) -> tuple[Array, Array]:
    """Return the likeliest tokens ``[B, t, A]`` of every place and their log-probs."""
    del tokens  # the sampled ones
    return rl.likeliest(logits, count)


@functools.partial(jax.jit, static_argnames=("branch_score", "columns", "stop_ids"))
@jax.named_scope("expect")
def expect(
    *,
    branch_score: Callable[..., Array],
    columns: tuple[int, ...],
    stop_ids: tuple[int, ...],
    numbers: Numbers,
    forget_owner: Array,
    params: dict,
    index: Any,
    answers: TokenBatch,
    scores: Array,
    judged: Judged,
) -> Actions:
    """Return the likeliest tokens of every place with the reward of each.

    ``scores [B, T]`` are DA of the answers' own prefixes.
    """
    assert judged.likely is not None
    tokens, logps = judged.likely
    each = branch_score(params, index, answers, tokens)
    own = of_withdrawn(each, columns, forget_owner[answers.index])
    penalty, before = (rl.chi(x, numbers.c_seg, numbers.eps) for x in (own, scores))
    is_end = jnp.isin(tokens, jnp.asarray(stop_ids, jnp.int32))
    gains, rest = rl.gains_of(penalty, before, is_end, logps)
    weight = numbers.attribution_weight
    return Actions(tokens, logps, weight * gains, weight * rest)


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


@functools.partial(
    jax.jit,
    static_argnames=("objective", "optimiser", "microbatch_size"),
    donate_argnames=("trainable", "opt_state"),
)
@jax.named_scope("update")
def update(
    *,
    objective: Objective,
    optimiser: optax.GradientTransformation,
    microbatch_size: int | None,
    numbers: Numbers,
    names: Names | None,
    frozen: dict,
    trainable: dict,
    opt_state: optax.OptState,
    anchor: Any,
    experience: Experience,
    reference: Any = None,
    retain: TokenBatch | None = None,
) -> tuple[dict, optax.OptState, dict[str, Array]]:
    """Return what one step on the objective makes of parameters and optimiser state.

    With ``retain`` it is one step on it + lambda_dis KL(reference || policy).
    """

    def loss_fn(trainable: dict, rows: Experience) -> tuple[Array, dict[str, Array]]:
        return LOSSES[objective.learn](
            objective=objective,
            numbers=numbers,
            names=names,
            frozen=frozen,
            trainable=trainable,
            anchor=anchor,
            experience=rows,
        )

    grads, metrics = accumulated(
        loss_fn,
        trainable,
        experience,
        size=rows_at_once(microbatch_size, objective.model.cfg, experience.answers),
        weight=lambda rows: response_tokens(rows.answers),
    )
    if retain is not None:
        kept, held = after(
            grads,
            lambda: distillation(
                model=objective.model,
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
