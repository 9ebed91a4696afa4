"""DareU: de-attribute to forget (Lu et al., ICML 2026, arXiv 2605.30919).

One iteration: rollout, attribute, reward, advantage, then S times update and distil.
"""

import dataclasses
import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dareu_jax.config import RunConfig
from dareu_jax.data.batches import TokenBatch, steps_per_epoch
from dareu_jax.models import Rollout, init_head, join, split
from dareu_jax.parallel import key_of
from dareu_jax.registry import METHODS
from dareu_jax.training.optimiser import moments_of, optimiser_of
from dareu_jax.unlearning.dareu_options import DareuConfig
from dareu_jax.unlearning.method import Batches, Method, MethodInputs, Need
from dareu_jax.unlearning.optimisers import (
    Optimisers,
    distiller_of,
    of_state,
    ppo_updates,
    to_state,
)
from dareu_jax.unlearning.phase_table import phases_of
from dareu_jax.unlearning.refresh import View, drift, remember_last, viewer
from dareu_jax.unlearning.renamed import renamed
from dareu_jax.unlearning.reward_stages import reward_stage
from dareu_jax.unlearning.rows import answered, begun, cut, minibatches, repeat_rows
from dareu_jax.unlearning.setting import Experience, Setting, anchors_of, pays_for_prior

Array = jax.Array


class DareuState(NamedTuple):
    """Trainable pytree, optimiser state, behaviour policy.

    The optimiser's state is of `Optimisers` where ``dareu.retain_step`` is separate.

    ``attributed`` are the trainable decoder parameters that the index was last built
    at, ``{}`` where it is never built again.
    """

    trainable: dict  # {"decoder", "value_head"}, the latter for gae alone
    opt_state: optax.OptState
    behaviour: dict  # trainable decoder parameters of pi_old, {} where none outlives it
    attributed: dict


def uses_prior(cfg: RunConfig) -> bool:
    """Return whether the reward or the KL anchor reads the counterfactual prior."""
    return pays_for_prior(cfg.reward) or cfg.options("dareu").kl_anchor == "prior"


def uses_base(cfg: RunConfig) -> bool:
    """Return whether the KL anchor reads the model before its fine-tuning."""
    return "base" in anchors_of(cfg.options("dareu").kl_anchor)


def judges_logits(cfg: RunConfig) -> bool:
    """Return whether the judge reads log-probs, and not hidden states alone."""
    is_guarded = cfg.guards.kl_budget is not None
    hp: DareuConfig = cfg.options("dareu")
    is_paid = hp.kl_in == "reward" or pays_for_prior(cfg.reward)
    return is_guarded or is_paid or hp.likely > 0


def stages_of(cfg: RunConfig) -> set[str]:
    """Return the names of the stages that an iteration reads."""
    read = {"prior": uses_prior(cfg), "base": uses_base(cfg)}
    return {reward_stage(cfg), *(name for name, is_read in read.items() if is_read)}


def batches_of(cfg: RunConfig) -> dict[str, Need]:
    """Return the forget and retain batches of one iteration."""
    hp = cfg.options("dareu")
    retain = min(hp.distillations, 1) if hp.reuse_retain else hp.distillations
    return {
        "forget": Need(hp.batch_size, 1, "dareu.batch_size"),
        "retain": Need(
            hp.retain_batch_size, retain, "dareu.retain_batch_size", hp.microbatch_size
        ),
    }


@METHODS.register(
    "dareu",
    "PPO on de-attribution, anchored, with retain distillation",
    options=DareuConfig,
    needs=batches_of,
    reads=stages_of,
    sets=("reward",),
)
def make_dareu(cfg: RunConfig, inputs: MethodInputs) -> Method:
    """Return DareU as ``cfg.dareu`` and ``cfg.reward`` describe it."""
    hp: DareuConfig = cfg.options("dareu")
    per_epoch = steps_per_epoch(len(inputs.forget_owner), hp.batch_size)
    steps = hp.data_epochs * per_epoch
    reward = inputs.stages[reward_stage(cfg)]
    on = Setting(
        inputs=inputs,
        hp=hp,
        reward=cfg.reward,
        kernel=reward.kernel,
        prior=inputs.stages["prior"] if uses_prior(cfg) else None,
        base=inputs.stages["base"] if uses_base(cfg) else None,
        optimiser=optimiser_of(hp, ppo_updates(hp) * steps, decay=False),
        distiller=distiller_of(hp, hp.distillations * steps),
        is_reference_read=cfg.guards.kl_budget is not None,
    )
    is_old, is_rebuilt = hp.old_policy == "per_data_epoch", cfg.reward.refresh_every > 0
    keeps = is_old or is_rebuilt or hp.kl_anchor == "behaviour"
    row = Row(
        on=on,
        phase=phases_of(on),
        per_behaviour=per_epoch if is_old else 1,
        keeps_behaviour=keeps,
        view=viewer(inputs, reward, cfg.reward.refresh_every),
        there=remember_last(inputs.layouts.params),
    )
    return Method(
        steps=steps,
        init=Start(
            optimiser=on.optimiser.init,
            distiller=on.distiller and on.distiller.init,
            head=inputs.model.cfg.embed if hp.has_values else 0,
            keeps_behaviour=keeps,
            is_rebuilt=is_rebuilt,
        ),
        step=functools.partial(iterate, row),
        params_of=lambda state: join(inputs.frozen, state.trainable["decoder"]),
        headline="attribution",
    )


@dataclasses.dataclass(frozen=True)
class Start:
    """``(params, *, key) -> DareuState``; equal ones are one program.

    Attributes:
      optimiser: from trainable parameters to the state of their optimiser; distiller:
        to that of distillation, where it has moments of its own.
      head: features that the value head reads; 0: there is none.
      keeps_behaviour: whether the behaviour policy is read after the first update.
      is_rebuilt: whether the index of the reward is built again on the way.
    """

    optimiser: Callable[[Any], optax.OptState]
    head: int
    keeps_behaviour: bool
    is_rebuilt: bool
    distiller: Callable[[Any], optax.OptState] | None = None

    def __call__(self, params: Any, *, key: Array) -> DareuState:
        """Return the state before the first iteration."""
        decoder, _ = split(params)
        trainable = {"decoder": copied(decoder)}
        if self.head:
            trainable["value_head"] = init_head(1, self.head, key=key)
        opt_state = self.optimiser(trainable)
        if self.distiller:
            opt_state = Optimisers(opt_state, moments_of(self.distiller(trainable)))
        return DareuState(
            trainable=trainable,
            opt_state=opt_state,
            behaviour=copied(decoder) if self.keeps_behaviour else {},
            attributed=copied(decoder) if self.is_rebuilt else {},
        )


def copied(params: Any) -> Any:
    """Return the same parameters in memory of their own."""
    return jax.tree.map(jnp.copy, params)


@functools.partial(jax.jit, donate_argnames="old", keep_unused=True)
def in_place_of(old: dict, new: dict) -> dict:
    """Return a copy of ``new`` in the memory of ``old``, which is used up."""
    del old
    return copied(new)


def behaviour_of(state: DareuState, is_renewed: bool) -> dict:
    """Return the behaviour policy: the last one, or a copy of the policy.

    An update writes the next policy over the one before.
    """
    policy, last = state.trainable["decoder"], state.behaviour
    if not is_renewed:
        return last
    is_read = last is state.attributed  # by the index of the reward
    return copied(policy) if is_read else in_place_of(last, policy)


@dataclasses.dataclass(frozen=True)
class Row:
    """What an iteration of one row is made with.

    Attributes:
      on: what its phases have in common; phase: they, by name.
      per_behaviour: iterations that sample from the same behaviour policy.
      view: what the reward looks at, see `viewer`.
      there: from frozen parameters to the same in the layout of a rollout.
      keeps_behaviour: whether the behaviour policy is read after the first update, and
        so is a copy of the policy.
    """

    on: Setting
    phase: SimpleNamespace
    per_behaviour: int
    view: Callable[[int, dict, dict], View]
    there: Callable[[dict], dict]
    keeps_behaviour: bool

    def sample(self, policy: dict, prompts: TokenBatch, *, key: Array) -> Rollout:
        """Sample one answer per row, in as many slots as the longest needs.

        ``policy`` are trainable parameters.
        """
        there = self.there(self.on.inputs.frozen)
        said = self.phase.rollout(frozen=there, policy=policy, prompts=prompts, key=key)
        return cut(said, self.on.widths)

    def retained(self, batches: list[TokenBatch], *, key: Array) -> list[TokenBatch]:
        """Return the retain batch of every update: the given ones, or one for all."""
        if not self.on.hp.reuse_retain:
            return batches
        once = [self.answered(retain, key=key_of(key, 1)) for retain in batches]
        return once * self.on.hp.distillations

    def taught(self, retain: TokenBatch, *, key: Array) -> TokenBatch:
        """Return what an update distils at, which may be `answered` for all of them."""
        return retain if self.on.hp.reuse_retain else self.answered(retain, key=key)

    def answered(self, retain: TokenBatch, *, key: Array) -> TokenBatch:
        """Return retain rows with gold answers, or with those of the reference."""
        if self.on.hp.distil_on == "gold":
            return retain
        reference, _ = split(self.on.inputs.reference)
        return answered(retain, self.sample(reference, retain, key=key))


def iterate(row: Row, state: DareuState, batch: Batches, step: int, *, key: Array):
    """Return the state after one iteration, and what was measured in it."""
    phase, hp, inputs = row.phase, row.on.hp, row.on.inputs
    frozen, reference = inputs.frozen, inputs.reference
    prior, base = row.on.prior, row.on.base
    trainable, opt_state, _, attributed = state
    behaviour = trainable["decoder"]
    if row.keeps_behaviour:
        behaviour = behaviour_of(state, step % row.per_behaviour == 0)
    prompts = repeat_rows(batch["forget"][0], hp.samples_per_prompt)
    if hp.prefix_share:
        prompts = begun(prompts, hp.prefix_share, key=key_of(key, 0))

    rollout = row.sample(behaviour, prompts, key=key)
    answers = answered(prompts, rollout)
    view = row.view(step, attributed, behaviour)
    stranger = None
    if "renamed" in row.on.anchors:
        stranger = renamed(inputs.names, answers, key=key_of(key_of(key, 0), 1))
    scores = phase.attribute(**view.now._asdict(), answers=answers)
    judged = phase.judge(
        frozen=frozen,
        trainable=trainable,
        behaviour=behaviour,
        reference=reference,
        prior=prior and prior.params,
        base=base and base.params,
        answers=answers,
        renamed=stranger,
    )
    rewards = phase.reward(scores=scores, judged=judged, mask=answers.response_mask)
    experience = phase.advantage(
        rewards=rewards, rollout=rollout, judged=judged, answers=answers
    )
    if hp.actions == "top_k":
        actions = phase.expect(
            **view.now._asdict(), answers=answers, scores=scores, judged=judged
        )
        experience = experience._replace(actions=actions)
    trainable, opt_state, learnt = learn(
        row,
        trainable,
        opt_state,
        anchor=row.on.anchor(behaviour),
        experience=experience,
        retain=row.retained(batch["retain"], key=key),
        key=key,
    )
    measured = phase.measure(
        scores=scores, rewards=rewards, judged=judged, answers=answers
    )
    moved = drift(phase.attribute, view, scores, answers)
    kept_policy = behaviour if row.keeps_behaviour else {}
    state = DareuState(trainable, opt_state, kept_policy, view.attributed)
    return state, {**measured, **learnt, **moved}


def learn(
    row: Row,
    trainable: dict,
    opt_state: optax.OptState,
    *,
    anchor: tuple[dict, ...],
    experience: Experience,
    retain: list[TokenBatch],
    key: Array,
) -> tuple[dict, optax.OptState, dict[str, Array]]:
    """Return parameters, optimiser state and metrics after all updates on a batch."""
    phase, hp, inputs = row.phase, row.on.hp, row.on.inputs
    both, metrics = of_state(opt_state), dict[str, Array]()

    for s in range(hp.updates_per_batch):
        parts = minibatches(hp, experience, s, key=key)
        beside: tuple[Any, ...] = (None,) * len(parts)
        after = retain[s :: hp.updates_per_batch]
        if hp.retain_step == "joint":
            key = key_of(key, 1)
            beside = minibatches(hp, row.taught(after.pop(), key=key), s, key=key)
        for part, held in zip(parts, beside, strict=True):
            trainable, ppo, found = phase.update(
                frozen=inputs.frozen,
                trainable=trainable,
                opt_state=both.ppo,
                anchor=anchor,
                experience=part,
                reference=inputs.reference,
                retain=held,
            )
            both, metrics = both._replace(ppo=ppo), metrics | found
        for rows in after:
            key = key_of(key, 1)
            trainable, state, found = phase.distil(
                frozen=inputs.frozen,
                trainable=trainable,
                opt_state=both.of_distillation,
                reference=inputs.reference,
                retain=row.taught(rows, key=key),
            )
            both, metrics = both.distilled(state), metrics | found
    return trainable, to_state(both), metrics
