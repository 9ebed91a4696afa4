"""The phases of one DareU iteration, each a jitted pure function."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from dareu_jax import reinforcement as rl
from dareu_jax.attribution import last_valid
from dareu_jax.config import DareuConfig, RunConfig
from dareu_jax.corpus.batches import TokenBatch
from dareu_jax.generation import Rollout, generate
from dareu_jax.models import (
    Decoder,
    Trunk,
    apply_head,
    join,
    over_logits,
    split,
    token_logps,
    trunk_of,
)
from dareu_jax.unlearning.method import MethodInputs, Prior, RewardIndex
from dareu_jax.unlearning.work import PhaseWork

Array = jax.Array
SHORT = 3  # tokens, end of text included: fewer is no sentence


class Judged(NamedTuple):
    """What the frozen models and the value head say of the sampled answers.

    Attributes:
      logps, ref_logps, prior_logps: ``[B, T]`` float32, policy, reference, prior
        (zeros without one).
      values: ``[B, T]`` float32, V(c_t).
      anchor: ``[B, T, D]`` hidden states of the KL anchor.
      kl: ``[B, T]`` float32, KL(policy || anchor) by the configured estimator.
    """

    logps: Array
    ref_logps: Array
    prior_logps: Array
    values: Array
    anchor: Array
    kl: Array


class Experience(NamedTuple):
    """One sampled batch ready for updates; every array ``[B, T]`` but ``anchor``."""

    answers: TokenBatch
    old_logps: Array
    old_values: Array
    advantages: Array
    returns: Array
    anchor: Array


@functools.partial(jax.jit, static_argnames="times")
def repeat_rows(batch: TokenBatch, times: int) -> TokenBatch:
    """Repeats every row, for several samples per prompt."""
    return jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), batch)


def policy_and_value(
    model: Decoder, frozen: dict, trainable: dict, answers: TokenBatch, hp: DareuConfig
) -> tuple[Trunk, Array]:
    """The policy's trunk and, from the same one, values V(c_t) ``[B, T]``."""
    trunk = trunk_of(model, join(frozen, trainable["decoder"]), answers)
    hidden = trunk.hidden
    if hp.value_gradient == "head":
        hidden = jax.lax.stop_gradient(hidden)
    values = apply_head(1, trainable["value_head"], hidden)[..., 0]
    return trunk, jnp.where(answers.response_mask, values, 0.0)


def compare(
    policy: Array, anchor: Array, tokens: Array, estimator: str = "full"
) -> tuple[Array, Array]:
    """log pi(y_t) and KL(pi || anchor) ``[B, t]`` from logits ``[B, t, V]``."""
    logps = token_logps(policy, tokens)
    if estimator == "full":
        return logps, rl.full_kl(policy, anchor)
    return logps, rl.sampled_kl(logps, token_logps(anchor, tokens))


def repeats_itself(tokens: Array, mask: Array) -> Array:
    """``[B]`` bool: over half of the token pairs of a response occurred before.

    Responses of fewer than 8 tokens never count.
    """
    valid = mask[:, 1:]
    alike = tokens[:, :, None] == tokens[:, None, :]
    same = alike[:, :-1, :-1] & alike[:, 1:, 1:] & valid[:, None, :]
    earlier = jnp.tril(jnp.ones(same.shape[1:], bool), k=-1)[None]
    seen = jnp.any(same & earlier, axis=-1) & valid
    count = jnp.sum(valid.astype(jnp.float32), axis=1)
    share = jnp.sum(seen.astype(jnp.float32), axis=1) / jnp.maximum(count, 1.0)
    return (share > 0.5) & (count >= 7)


class Phases:
    """The equations of one iteration bound to a configuration; holds no state."""

    def __init__(
        self,
        cfg: RunConfig,
        world: MethodInputs,
        reward: RewardIndex,
        optimiser: optax.GradientTransformation,
    ):
        self.cfg, self.world, self.optimiser = cfg, world, optimiser
        self.hp, self.kernel = cfg.options("dareu"), reward.kernel
        prior: Prior | None = world.stages.get("prior")
        self.prior_model = prior.model if prior else None
        self.prior_params = prior.params if prior else None
        is_prior = prior is not None and self.hp.kl_anchor == "prior"
        self.anchored_to = self.hp.kl_anchor
        self.anchor_model = prior.model if prior and is_prior else world.model
        self.tokens = self.hp.max_new_tokens or world.response_tokens
        self.kappa = rl.segment_length(self.tokens, cfg.reward.slices)
        work, timed = self.work, world.watch.timed
        self.rollout = timed("rollout", self._rollout, work.rollout)
        self.attribute = timed("attribute", jax.jit(self._attribute), work.attribute)
        self.judge = timed("judge", jax.jit(self._judge), work.judge)
        self.reward = timed("reward", jax.jit(self._reward), work.reward)
        self.advantage = jax.jit(self._advantage)
        update = jax.jit(self._update, donate_argnums=(2,))
        self.update = timed("update", update, work.update)
        distil = jax.jit(self._distil, donate_argnums=(2,))
        self.distil = timed("distil", distil, work.distil)
        self.measure = jax.jit(self._measure)

    @property
    def work(self) -> PhaseWork:
        """What each phase has to do."""
        world, policy = self.world, self.world.model.cfg
        frozen = [policy] * (1 + (self.anchored_to == "behaviour"))
        if self.prior_model is not None:
            frozen.append(self.prior_model.cfg)
        anchor = self.anchor_model.cfg if self.hp.kl_in == "loss" else None
        return PhaseWork(policy, bool(world.frozen), frozen, anchor)

    def _rollout(self, trainable: dict, prompts: TokenBatch, *, key: Array) -> Rollout:
        """Samples one answer per row from a policy's trainable decoder parameters.

        They are moved to the layout of a rollout; frozen ones are there already.
        """
        layouts, world = self.world.layouts, self.world
        with layouts.sampling():
            said = generate(
                world.model,
                join(self.frozen_there, layouts.params(trainable)),
                *layouts.rows((prompts.prompt, prompts.prompt_mask)),
                max_new_tokens=self.tokens,
                temperature=self.hp.temperature,
                stop_ids=world.stop_ids,
                key=layouts.key(key),
            )
        return layouts.back(said)

    @functools.cached_property
    def frozen_there(self) -> dict:
        """Frozen parameters in the layout of a rollout."""
        return self.world.layouts.params(self.world.frozen)

    def teach(self, reference: dict, retain: TokenBatch, *, key: Array) -> TokenBatch:
        """What to distil at: gold retain answers, or those of the reference."""
        if self.hp.distil_on == "gold":
            return retain
        return self.answers(retain, self.rollout(split(reference)[0], retain, key=key))

    def answers(self, prompts: TokenBatch, rollout: Rollout) -> TokenBatch:
        """The prompts with the sampled responses in place of the gold ones."""
        return prompts._replace(response=rollout.tokens, response_mask=rollout.mask)

    @jax.named_scope("attribute")
    def _attribute(self, reference, index, answers: TokenBatch) -> Array:
        """DA(i, y[:t]) ``[B, T]`` of the owners that the answer must not come from."""
        assert self.kernel.prefix_score is not None
        scores = self.kernel.prefix_score(reference, index, answers)
        if self.cfg.reward.owner_score == "own":
            own = self.world.forget_owner[answers.index]
            return jnp.take_along_axis(scores, own[:, None, None], axis=2)[..., 0]
        columns = jnp.asarray(self.world.forget_columns, jnp.int32)
        return jnp.sum(jnp.take(scores, columns, axis=2), axis=-1)

    def anchor(self, behaviour: dict) -> dict:
        """Parameters of the KL anchor."""
        if self.anchored_to == "behaviour":
            return join(self.world.frozen, behaviour)
        return (
            self.prior_params if self.anchored_to == "prior" else self.world.reference
        )

    def _judge(self, frozen, trainable, behaviour, reference, prior, answers):
        """Runs policy, reference, prior and KL anchor over the answers."""
        hp, world, tokens = self.hp, self.world, answers.response
        policy, values = policy_and_value(world.model, frozen, trainable, answers, hp)
        trunks = {"reference": trunk_of(world.model, reference, answers)}
        prior_logps = jnp.zeros_like(values)
        if self.prior_model is not None:
            trunks["prior"] = trunk_of(self.prior_model, prior, answers)
            prior_logps = over_logits(token_logps, [trunks["prior"]], tokens)
            prior_logps = jnp.where(answers.response_mask, prior_logps, 0.0)
        if self.anchored_to == "behaviour":
            before = join(frozen, behaviour)
            trunks["behaviour"] = trunk_of(world.model, before, answers)
        anchor = trunks[self.anchored_to]
        score = functools.partial(compare, estimator=hp.kl_estimator)
        logps, kl = over_logits(score, [policy, anchor], tokens, hp.temperature)
        ref = over_logits(token_logps, [trunks["reference"]], tokens, hp.temperature)
        return Judged(logps, ref, prior_logps, values, anchor.hidden, kl)

    @jax.named_scope("reward")
    def _reward(self, scores: Array, judged: Judged, mask: Array) -> Array:
        """Token rewards ``[B, T]``: shaped attribution, prior bonus, KL penalty."""
        cfg, hp = self.cfg.reward, self.hp
        penalty = rl.chi(
            rl.segment_scores(scores, mask, self.kappa), cfg.c_seg, cfg.eps
        )
        bonus = rl.prior_bonus(judged.prior_logps, mask, cfg.prior_floor)
        if cfg.combine == "product":
            rewards = rl.token_rewards((1.0 + penalty) * bonus, mask, cfg.shape)
        else:
            rewards = cfg.attribution_weight * rl.token_rewards(
                penalty, mask, cfg.shape
            )
            if cfg.prior != "none":
                rewards += cfg.prior_weight * rl.token_rewards(bonus, mask, cfg.prior)
        if hp.kl_in == "reward":
            rewards -= hp.kl_coef * jnp.where(mask, judged.kl, 0.0)
        return rewards

    def _advantage(self, rewards, rollout: Rollout, judged, answers) -> Experience:
        """GAE, whitened; the behaviour policy's log-probs are the rollout's own."""
        hp, mask = self.hp, answers.response_mask
        advantages, returns = rl.gae(
            rewards, judged.values, mask, hp.gamma, hp.gae_lambda
        )
        if hp.whiten:
            advantages = rl.whiten(advantages, mask)
        return Experience(
            answers,
            rollout.logps,
            judged.values,
            advantages,
            returns,
            judged.anchor,
        )

    @jax.named_scope("update")
    def _update(self, frozen, trainable, opt_state, anchor, experience: Experience):
        """One clipped PPO step on policy and value head."""
        loss = functools.partial(self.ppo_loss, frozen, anchor)
        grads, metrics = jax.grad(loss, has_aux=True)(trainable, experience)
        return *self._apply(trainable, opt_state, grads), metrics

    def ppo_loss(self, frozen, anchor, trainable, experience: Experience):
        """-J + c_V L_V (+ c_KL KL(pi || anchor) where the KL is in the loss)."""
        hp, answers, world = self.hp, experience.answers, self.world
        mask = answers.response_mask
        policy, values = policy_and_value(world.model, frozen, trainable, answers, hp)
        said = functools.partial(
            over_logits, tokens=answers.response, temperature=hp.temperature
        )
        if hp.kl_in == "loss":
            held = Trunk(self.anchor_model, anchor, experience.anchor)
            logps, kl = said(compare, [policy, held])
        else:
            logps, kl = said(token_logps, [policy]), jnp.zeros_like(values)
        surrogate = rl.policy_loss(
            logps, experience.old_logps, experience.advantages, mask, hp.clip
        )
        value = rl.value_loss(
            values, experience.old_values, experience.returns, mask, hp.clip
        )
        loss = surrogate + hp.value_coef * value
        loss += hp.kl_coef * rl.masked_mean(kl, mask)
        clipped = rl.clip_fraction(logps, experience.old_logps, mask, hp.clip)
        return loss, {
            "policy_loss": surrogate,
            "value_loss": value,
            "clip_fraction": clipped,
        }

    @jax.named_scope("distil")
    def _distil(self, frozen, trainable, opt_state, reference, retain: TokenBatch):
        """One step on lambda_dis KL(reference || policy) at gold retain answers."""
        model, mask = self.world.model, retain.response_mask
        teacher = trunk_of(model, reference, retain)

        def score(taught: Array, logits: Array, tokens: Array):
            hit = jnp.argmax(logits, axis=-1) == tokens
            return rl.full_kl(taught, logits), hit.astype(jnp.float32)

        def loss_fn(trainable):
            pupil = trunk_of(model, join(frozen, trainable["decoder"]), retain)
            kl, hit = over_logits(score, [teacher, pupil], retain.response)
            loss, accuracy = rl.masked_mean(kl, mask), rl.masked_mean(hit, mask)
            metrics = {"distillation_loss": loss, "retain_accuracy": accuracy}
            return self.hp.lambda_dis * loss, metrics

        grads, metrics = jax.grad(loss_fn, has_aux=True)(trainable)
        return *self._apply(trainable, opt_state, grads), metrics

    def _apply(self, trainable, opt_state, grads):
        updates, opt_state = self.optimiser.update(grads, opt_state, trainable)
        return optax.apply_updates(trainable, updates), opt_state

    def _measure(self, scores, rewards, judged: Judged, answers: TokenBatch) -> dict:
        """What to watch at every iteration, float32 scalars over the sampled batch."""
        mask = answers.response_mask
        length = jnp.sum(mask.astype(jnp.float32), axis=1)
        short = length < SHORT
        loops = repeats_itself(answers.response, mask)
        drift = rl.sampled_kl(judged.logps, judged.ref_logps)
        share = functools.partial(jnp.mean, dtype=jnp.float32)
        return {
            "reward": jnp.mean(jnp.sum(rewards, axis=1)),
            "attribution": jnp.mean(last_valid(scores, mask)),
            "kl_reference": rl.masked_mean(drift, mask),
            "kl_anchor": rl.masked_mean(judged.kl, mask),
            "prior_likelihood": rl.masked_mean(judged.prior_logps, mask),
            "response_length": jnp.mean(length),
            "length_ratio": jnp.mean(length) / self.world.gold_length,
            "collapse_share": share((short | loops).astype(jnp.float32)),
        }
