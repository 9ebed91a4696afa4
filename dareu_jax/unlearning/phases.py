"""The phases of one DareU iteration: pure functions, each with the work that it is."""

import functools
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dareu_jax import models, rl
from dareu_jax.data.batches import TokenBatch
from dareu_jax.models import Rollout, Trunk, join, over_logits, token_logps, trunk_of
from dareu_jax.parallel import along_batch, key_of
from dareu_jax.training.accumulation import accumulated, parts_of
from dareu_jax.training.finetune import response_tokens
from dareu_jax.training.optimiser import updated
from dareu_jax.training.throughput import Work
from dareu_jax.training.work import learn, read, texts_of, trues
from dareu_jax.unlearning.dareu_options import DareuConfig
from dareu_jax.unlearning.measures import measure
from dareu_jax.unlearning.setting import Experience, Judged, Phase, Setting

Array = jax.Array


@functools.partial(jax.jit, static_argnames="times")
def repeat_rows(batch: TokenBatch, times: int) -> TokenBatch:
    """Return every row several times, for several samples per prompt."""
    return jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), batch)


def answered(prompts: TokenBatch, rollout: Rollout) -> TokenBatch:
    """Return the prompts with the sampled responses in place of the gold ones."""
    return prompts._replace(response=rollout.tokens, response_mask=rollout.mask)


def rollout(
    on: Setting, *, frozen: dict, policy: dict, prompts: TokenBatch, key: Array
) -> Rollout:
    """Return one sampled answer per row.

    ``frozen`` parameters are in the layout of a rollout; ``policy`` is moved there.
    """
    layouts = on.inputs.layouts
    prompt, prompt_mask = layouts.rows((prompts.prompt, prompts.prompt_mask))
    with layouts.sampling():
        said = models.generate(
            on.inputs.model,
            join(frozen, layouts.params(policy)),
            prompt,
            prompt_mask,
            max_new_tokens=on.tokens,
            temperature=on.hp.temperature,
            stop_ids=on.inputs.stop_ids,
            key=layouts.key(key),
        )
    return layouts.back(said)


def rollout_work(on: Setting, said: Rollout, *, prompts: TokenBatch, **_: Any) -> Work:
    """Return one pass over prompt and answer, a token at a time."""
    text = texts_of(answered(prompts, said))
    return Work(text.response, read(on.inputs.model.cfg, text))


@jax.named_scope("attribute")
def attribute(on: Setting, *, params: dict, index: Any, answers: TokenBatch) -> Array:
    """Return DA(i, y[:t]) ``[B, T]`` of the owners an answer must not come from."""
    assert on.kernel.prefix_score is not None
    scores = on.kernel.prefix_score(params, index, answers)
    if on.reward.owner_score == "own":
        own = on.inputs.forget_owner[answers.index]
        return jnp.take_along_axis(scores, own[:, None, None], axis=2)[..., 0]
    columns = jnp.asarray(on.inputs.forget_columns, jnp.int32)
    return jnp.sum(jnp.take(scores, columns, axis=2), axis=-1)


def attribute_work(on: Setting, _: Array, *, answers: TokenBatch, **__: Any) -> Work:
    """Return the tokens alone: the FLOPs are the kernel's and not known here."""
    return Work(texts_of(answers).tokens)


def policy_and_value(
    on: Setting, frozen: dict, trainable: dict, answers: TokenBatch
) -> tuple[Trunk, Array]:
    """Return the policy's trunk and, from the same one, values V(c_t) ``[B, T]``.

    Without a value head they are zeros.
    """
    trunk = trunk_of(on.inputs.model, join(frozen, trainable["decoder"]), answers)
    if "value_head" not in trainable:
        return trunk, jnp.zeros(answers.response.shape, jnp.float32)
    hidden = trunk.hidden
    if on.hp.value_gradient == "head":
        hidden = jax.lax.stop_gradient(hidden)
    values = models.apply_head(1, trainable["value_head"], hidden)[..., 0]
    return trunk, jnp.where(answers.response_mask, values, 0.0)


def compare(
    policy: Array, anchor: Array, tokens: Array, estimator: str = "full"
) -> tuple[Array, Array]:
    """Return log pi(y_t) and KL(pi || anchor) ``[B, t]`` of logits ``[B, t, V]``."""
    logps = token_logps(policy, tokens)
    if estimator == "full":
        return logps, rl.full_kl(policy, anchor)
    return logps, rl.sampled_kl(logps, token_logps(anchor, tokens))


def judge(
    on: Setting,
    *,
    frozen: dict,
    trainable: dict,
    behaviour: dict,
    reference: dict,
    prior: Any,
    answers: TokenBatch,
) -> Judged:
    """Return what policy, reference, prior and KL anchor say of the answers."""
    hp, model, tokens = on.hp, on.inputs.model, answers.response
    policy, values = policy_and_value(on, frozen, trainable, answers)
    trunks = {"reference": trunk_of(model, reference, answers)}
    prior_logps = jnp.zeros_like(values)
    if on.prior is not None:
        trunks["prior"] = trunk_of(on.prior.model, prior, answers)
        prior_logps = over_logits(token_logps, [trunks["prior"]], tokens)
        prior_logps = jnp.where(answers.response_mask, prior_logps, 0.0)
    if hp.kl_anchor == "behaviour":
        trunks["behaviour"] = trunk_of(model, join(frozen, behaviour), answers)
    anchor = trunks[hp.kl_anchor]
    score = functools.partial(compare, estimator=hp.kl_estimator)
    logps, kl = over_logits(score, [policy, anchor], tokens, hp.temperature)
    ref = over_logits(token_logps, [trunks["reference"]], tokens, hp.temperature)
    return Judged(
        logps=logps,
        ref_logps=ref,
        prior_logps=prior_logps,
        values=values,
        anchor=anchor.hidden,
        kl=kl,
    )


def judge_work(on: Setting, _: Judged, *, answers: TokenBatch, **__: Any) -> Work:
    """Return one pass of the policy and of every frozen decoder."""
    text, model = texts_of(answers), on.inputs.model.cfg
    flops = read(model, text) * (3 if on.hp.kl_anchor == "behaviour" else 2)
    if on.prior is not None:
        flops += read(on.prior.model.cfg, text)
    return Work(text.tokens, flops)


@jax.named_scope("reward")
def reward(on: Setting, *, scores: Array, judged: Judged, mask: Array) -> Array:
    """Return rewards ``[B, T]``: shaped attribution, prior bonus, KL penalty."""
    cfg, hp = on.reward, on.hp
    kappa = rl.segment_length(on.tokens, cfg.slices)
    penalty = rl.chi(rl.segment_scores(scores, mask, kappa), cfg.c_seg, cfg.eps)
    bonus = rl.prior_bonus(judged.prior_logps, mask, cfg.prior_floor)
    if cfg.combine == "product":
        rewards = rl.token_rewards((1.0 + penalty) * bonus, mask, cfg.shape)
    else:
        rewards = cfg.attribution_weight * rl.token_rewards(penalty, mask, cfg.shape)
        if cfg.prior != "none":
            rewards += cfg.prior_weight * rl.token_rewards(bonus, mask, cfg.prior)
    if hp.kl_in == "reward":
        rewards -= hp.kl_coef * jnp.where(mask, judged.kl, 0.0)
    return rewards


def reward_work(on: Setting, _: Array, *, mask: Array, **__: Any) -> Work:
    """Return the tokens of the answers: a few numbers each."""
    return Work(trues(mask))


def gae(hp: DareuConfig, rewards: Array, values: Array, mask: Array):
    """Return advantages and returns ``[B, T]`` over the value head's values."""
    return rl.gae(rewards, values, mask, hp.gamma, hp.gae_lambda)


def group(hp: DareuConfig, rewards: Array, values: Array, mask: Array):
    """Return the group's advantages of the summed rewards, and the sums."""
    whole = jnp.sum(rewards, axis=1)
    advantages = rl.group_advantage(whole, mask, hp.samples_per_prompt)
    return advantages, jnp.where(mask, whole[:, None], 0.0)


ADVANTAGES = {"gae": gae, "group": group}
"""By the name in ``dareu.advantage``; with ``gae`` a value head is trained."""


def advantage(
    on: Setting,
    *,
    rewards: Array,
    rollout: Rollout,
    judged: Judged,
    answers: TokenBatch,
) -> Experience:
    """Return what an update learns from; the old log-probs are the rollout's own."""
    hp, mask = on.hp, answers.response_mask
    estimate = ADVANTAGES[hp.advantage]
    advantages, returns = estimate(hp, rewards, judged.values, mask)
    if hp.whiten:
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
    on: Setting, frozen: dict, anchor: Any, trainable: dict, experience: Experience
) -> tuple[Array, dict[str, Array]]:
    """Return -J + c_V L_V (+ c_KL KL(pi || anchor) where the KL is in the loss)."""
    hp, given, mask = on.hp, experience, experience.answers.response_mask
    policy, values = policy_and_value(on, frozen, trainable, given.answers)
    said = functools.partial(
        over_logits, tokens=given.answers.response, temperature=hp.temperature
    )
    if hp.kl_in == "loss":
        held = Trunk(on.anchor_model, anchor, given.anchor)
        logps, kl = said(compare, [policy, held])
    else:
        logps, kl = said(token_logps, [policy]), jnp.zeros_like(values)
    surrogate = rl.policy_loss(logps, given.old_logps, given.advantages, mask, hp.clip)
    clipped = rl.clip_fraction(logps, given.old_logps, mask, hp.clip)
    loss, metrics = surrogate, {"policy_loss": surrogate, "clip_fraction": clipped}
    if "value_head" in trainable:
        old, returns = given.old_values, given.returns
        metrics["value_loss"] = rl.value_loss(values, old, returns, mask, hp.clip)
        loss += hp.value_coef * metrics["value_loss"]
    return loss + hp.kl_coef * rl.masked_mean(kl, mask), metrics


def minibatches(
    hp: DareuConfig, experience: Experience, number: int, *, key: Array
) -> tuple[Experience, ...]:
    """Return what each update of pass ``number`` over a batch learns from.

    The rows are in another order in each pass; whole batches stay as they are.
    """
    if hp.minibatches == 1:
        return (experience,)
    return shuffled(experience, hp.minibatches, key=key_of(key, 2 + number))


@functools.partial(jax.jit, static_argnames="count")
def shuffled(batch: Any, count: int, *, key: Array) -> tuple[Any, ...]:
    """Return ``count`` equal parts of a batch, with the rows in an order by the key."""
    order = jax.random.permutation(key, len(jax.tree.leaves(batch)[0]))
    mixed = jax.tree.map(lambda x: along_batch(jnp.take(x, order, axis=0)), batch)
    parts = parts_of(mixed, count)
    return tuple(jax.tree.map(lambda x, n=n: x[n], parts) for n in range(count))


@jax.named_scope("update")
def update(
    on: Setting,
    *,
    frozen: dict,
    trainable: dict,
    opt_state: optax.OptState,
    anchor: Any,
    experience: Experience,
) -> tuple[dict, optax.OptState, dict[str, Array]]:
    """Return what one clipped PPO step makes of parameters and optimiser state."""
    grads, metrics = accumulated(
        functools.partial(ppo_loss, on, frozen, anchor),
        trainable,
        experience,
        size=on.hp.microbatch_size,
        weight=lambda rows: response_tokens(rows.answers),
    )
    return *updated(on.optimiser, trainable, opt_state, grads), metrics


def update_work(on: Setting, _: Any, *, experience: Experience, **__: Any) -> Work:
    """Return a gradient step on the answers, and the anchor's logits."""
    text = texts_of(experience.answers)
    flops = learn(on.inputs.model.cfg, text, bool(on.inputs.frozen))
    if on.hp.kl_in == "loss":
        flops += models.forward_flops(on.anchor_model.cfg, 0, 0, text.response)
    return Work(text.tokens, flops)


@jax.named_scope("distil")
def distil(
    on: Setting,
    *,
    frozen: dict,
    trainable: dict,
    opt_state: optax.OptState,
    reference: dict,
    retain: TokenBatch,
) -> tuple[dict, optax.OptState, dict[str, Array]]:
    """Return what a step on lambda_dis KL(reference || policy) makes of the same."""
    model = on.inputs.model

    def score(taught: Array, logits: Array, tokens: Array):
        hit = jnp.argmax(logits, axis=-1) == tokens
        return rl.full_kl(taught, logits), hit.astype(jnp.float32)

    def loss_fn(trainable, rows):
        teacher, mask = trunk_of(model, reference, rows), rows.response_mask
        pupil = trunk_of(model, join(frozen, trainable["decoder"]), rows)
        kl, hit = over_logits(score, [teacher, pupil], rows.response)
        loss, accuracy = rl.masked_mean(kl, mask), rl.masked_mean(hit, mask)
        metrics = {"distillation_loss": loss, "retain_accuracy": accuracy}
        return on.hp.lambda_dis * loss, metrics

    grads, metrics = accumulated(
        loss_fn, trainable, retain, size=on.hp.microbatch_size, weight=response_tokens
    )
    return *updated(on.optimiser, trainable, opt_state, grads), metrics


def distil_work(on: Setting, _: Any, *, retain: TokenBatch, **__: Any) -> Work:
    """Return a gradient step on retain text, and one pass of the reference."""
    cfg, text = on.inputs.model.cfg, texts_of(retain)
    flops = learn(cfg, text, bool(on.inputs.frozen)) + read(cfg, text)
    return Work(text.tokens, flops)


PHASES = {
    "rollout": Phase(rollout, rollout_work, is_jitted=False),
    "attribute": Phase(attribute, attribute_work),
    "judge": Phase(judge, judge_work),
    "reward": Phase(reward, reward_work),
    "advantage": Phase(advantage),
    "update": Phase(update, update_work, used_up=("opt_state",)),
    "distil": Phase(distil, distil_work, used_up=("opt_state",)),
    "measure": Phase(measure),
}


def phases_of(setting: Setting) -> SimpleNamespace:
    """Return every phase, by name, as one row runs it."""
    bound = {name: phase.bound(name, setting) for name, phase in PHASES.items()}
    return SimpleNamespace(**bound)
