"""DareU: de-attribute to forget (Lu et al., ICML 2026, arXiv 2605.30919).

One iteration: rollout, attribute, reward, advantage, then S times update and distil.
"""

from typing import NamedTuple

import jax
import optax

from dareu_jax.config import DareuConfig, RunConfig
from dareu_jax.models import init_head, join, split
from dareu_jax.models.optimiser import make_optimiser
from dareu_jax.parallel import key_of
from dareu_jax.registry import METHODS
from dareu_jax.unlearning.method import Method, MethodInputs, Need
from dareu_jax.unlearning.phases import Phases, repeat_rows
from dareu_jax.unlearning.refresh import FreshIndex

Array = jax.Array


class DareuState(NamedTuple):
    """Trainable pytree, optimiser state, behaviour policy.

    ``attributed`` are the trainable decoder parameters that the index was last built
    at, ``{}`` where it is never built again.
    """

    trainable: dict  # {"decoder", "value_head"}
    opt_state: optax.OptState
    behaviour: dict  # trainable decoder parameters of pi_old
    attributed: dict


def uses_prior(cfg: RunConfig) -> bool:
    """True when the reward or the KL anchor reads the counterfactual prior."""
    reward = cfg.reward
    return (
        reward.prior != "none"
        or reward.combine == "product"
        or cfg.options("dareu").kl_anchor == "prior"
    )


def reward_stage(cfg: RunConfig) -> str:
    """Return the name of the stage whose index is the reward."""
    return "reward_shuffled" if cfg.reward.shuffle_owners else "reward"


def stages_of(cfg: RunConfig) -> set[str]:
    """Return the names of the stages that an iteration reads."""
    return {reward_stage(cfg)} | ({"prior"} if uses_prior(cfg) else set())


def batches_of(cfg: RunConfig) -> dict[str, Need]:
    """Return the forget and retain batches of one iteration."""
    hp = cfg.options("dareu")
    retain = hp.updates_per_batch * hp.retain_updates
    return {
        "forget": Need(hp.batch_size, 1, "dareu.batch_size"),
        "retain": Need(hp.retain_batch_size, retain, "dareu.retain_batch_size"),
    }


def optimiser_of(hp: DareuConfig, iterations: int) -> optax.GradientTransformation:
    """AdamW at a steady rate, for the updates of every iteration."""
    return make_optimiser(
        hp.learning_rate,
        (1 + hp.retain_updates) * hp.updates_per_batch * iterations,
        warmup=hp.warmup,
        weight_decay=hp.weight_decay,
        clip_norm=hp.clip_norm,
        decay=False,
    )


@METHODS.register(
    "dareu",
    "PPO on de-attribution, anchored, with retain distillation",
    options=DareuConfig,
    needs=batches_of,
    reads=stages_of,
    sets=("reward",),
)
def make_dareu(cfg: RunConfig, inputs: MethodInputs) -> Method:
    """Returns DareU as ``cfg.dareu`` and ``cfg.reward`` describe it."""
    hp = cfg.options("dareu")
    per_epoch = -(-inputs.forget_owner.shape[0] // hp.batch_size)
    per_behaviour = per_epoch if hp.old_policy == "per_data_epoch" else 1
    optimiser = optimiser_of(hp, hp.data_epochs * per_epoch)
    phase = Phases(cfg, inputs, inputs.stages[reward_stage(cfg)], optimiser)
    fresh = FreshIndex(
        inputs, inputs.stages[reward_stage(cfg)], cfg.reward.refresh_every
    )

    def init(params, *, key: Array) -> DareuState:
        decoder, _ = split(params)
        head = init_head(1, inputs.model.cfg.embed, key=key)
        trainable = {"decoder": decoder, "value_head": head}
        opt_state, attributed = optimiser.init(trainable), fresh.first(decoder)
        return DareuState(trainable, opt_state, decoder, attributed)

    def step(state: DareuState, batch, step: int, *, key: Array):
        trainable, opt_state, frozen = state.trainable, state.opt_state, inputs.frozen
        sampled_anew = step % per_behaviour == 0
        behaviour = trainable["decoder"] if sampled_anew else state.behaviour
        prompts = repeat_rows(batch["forget"][0], hp.samples_per_prompt)

        rollout = phase.rollout(behaviour, prompts, key=key)
        answers = phase.answers(prompts, rollout)
        attributed, seen = fresh.at(step, state.attributed, behaviour)
        scores = phase.attribute(*seen, answers)
        judged = phase.judge(
            frozen, trainable, behaviour, inputs.reference, phase.prior_params, answers
        )
        rewards = phase.reward(scores, judged, answers.response_mask)
        experience = phase.advantage(rewards, rollout, judged, answers)
        anchor, kept = phase.anchor(behaviour), dict[str, Array]()
        for s in range(hp.updates_per_batch):
            trainable, opt_state, ppo = phase.update(
                frozen, trainable, opt_state, anchor, experience
            )
            for retain in batch["retain"][s :: hp.updates_per_batch]:
                key = key_of(key, 1)
                retain = phase.teach(inputs.reference, retain, key=key)
                trainable, opt_state, kept = phase.distil(
                    frozen, trainable, opt_state, inputs.reference, retain
                )
        metrics = phase.measure(scores, rewards, judged, answers)
        drift = fresh.drift(step, phase.attribute, scores, answers)
        state = DareuState(trainable, opt_state, behaviour, attributed)
        return state, {**metrics, **ppo, **kept, **drift}

    return Method(
        steps=hp.data_epochs * per_epoch,
        init=init,
        step=step,
        params_of=lambda state: join(inputs.frozen, state.trainable["decoder"]),
        headline="attribution",
    )
