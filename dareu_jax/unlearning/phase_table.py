"""Each phase of a DareU iteration beside what of a row it reads, and its work."""

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax

from dareu_jax.attribution import sliced
from dareu_jax.attribution.branches import branch_scores
from dareu_jax.data.batches import TokenBatch
from dareu_jax.models import Rollout, forward_flops
from dareu_jax.training.throughput import Work
from dareu_jax.training.work import learn, read, texts_of, trues
from dareu_jax.unlearning.measures import measure
from dareu_jax.unlearning.objectives import Objective
from dareu_jax.unlearning.phases import (
    advantage,
    attribute,
    distil,
    expect,
    judge,
    reward,
    rollout,
    update,
)
from dareu_jax.unlearning.rows import answered
from dareu_jax.unlearning.setting import Experience, Judged, Setting

Array = jax.Array


class Phase(NamedTuple):
    """One phase of an iteration.

    Attributes:
      run: ``(*, options, named arguments) -> result``: one jitted function for all
        rows; a rollout moves what it is given first.
      options: ``setting -> options``, what of a row it reads.
      work: ``(setting, result, *, named arguments) -> Work``; None: it is not timed.
    """

    run: Callable[..., Any]
    options: Callable[[Setting], dict[str, Any]]
    work: Callable[..., Work] | None = None

    def bound(self, name: str, setting: Setting) -> Callable[..., Any]:
        """Return the phase of one row, timed where its work is known."""
        run = functools.partial(self.run, **self.options(setting))
        if self.work is None:
            return run
        work = functools.partial(self.work, setting)
        return setting.inputs.watch.timed(name, run, work)


def rollout_options(on: Setting) -> dict[str, Any]:
    """Return what of a row a rollout reads."""
    return {
        "model": on.inputs.model,
        "layouts": on.inputs.layouts,
        "max_new_tokens": on.tokens,
        "temperature": on.hp.temperature,
        "stop_ids": on.inputs.stop_ids,
    }


def attribute_options(on: Setting) -> dict[str, Any]:
    """Return what of a row attribution reads."""
    is_own = on.reward.owner_score == "own"
    return {
        "prefix_score": sliced(on.kernel, *on.slices).prefix_score,
        "columns": () if is_own else on.inputs.forget_columns,
        "forget_owner": on.inputs.forget_owner,
    }


def judge_options(on: Setting) -> dict[str, Any]:
    """Return what of a row judging reads."""
    return {
        "model": on.inputs.model,
        "prior_model": on.prior and on.prior.model,
        "kl_anchor": on.hp.kl_anchor,
        "kl_in": on.hp.kl_in,
        "kl_estimator": on.hp.kl_estimator,
        "logps_of": on.logps_of,
        "likely": on.hp.likely,
        "numbers": on.numbers,
    }


def expect_options(on: Setting) -> dict[str, Any]:
    """Return what of a row attribution of all likely tokens reads."""
    how = attribute_options(on)
    return {
        "branch_score": branch_scores(on.kernel),
        "columns": how["columns"],
        "forget_owner": how["forget_owner"],
        "stop_ids": on.inputs.stop_ids,
        "numbers": on.numbers,
    }


def reward_options(on: Setting) -> dict[str, Any]:
    """Return what of a row its reward reads."""
    return {
        "slices": on.slices,
        "shape": on.reward.shape,
        "prior_shape": on.reward.prior,
        "combine": on.reward.combine,
        "numbers": on.numbers,
    }


def advantage_options(on: Setting) -> dict[str, Any]:
    """Return what of a row its advantages read."""
    is_group = on.hp.advantage == "group"
    return {
        "group_size": on.hp.samples_per_prompt if is_group else 0,
        "whiten": on.hp.whiten,
        "numbers": on.numbers,
    }


def loss_options(on: Setting) -> dict[str, Any]:
    """Return what of a row the loss of an update reads."""
    objective = Objective(
        model=on.inputs.model,
        anchor_models=on.anchor_models,
        learn=on.hp.learn,
        kl_anchor=on.hp.kl_anchor,
        kl_in=on.hp.kl_in,
        kl_direction=on.hp.kl_direction,
        value_gradient=on.hp.value_gradient,
    )
    return {"objective": objective, "numbers": on.numbers, "names": on.inputs.names}


def update_options(on: Setting) -> dict[str, Any]:
    """Return what of a row an update reads."""
    return loss_options(on) | step_options(on)


def step_options(on: Setting) -> dict[str, Any]:
    """Return what of a row a step of its optimiser reads."""
    return {"optimiser": on.optimiser, "microbatch_size": on.hp.microbatch_size}


def distil_options(on: Setting) -> dict[str, Any]:
    """Return what of a row distillation reads."""
    own = {"model": on.inputs.model, "numbers": on.numbers}
    return own | step_options(on)


def measure_options(on: Setting) -> dict[str, Any]:
    """Return what of a row is read where it is measured."""
    return {"longest": on.tokens, "numbers": on.numbers}


def of_rollout(on: Setting, said: Rollout, *, prompts: TokenBatch, **_: Any) -> Work:
    """Return one pass over prompt and answer, a token at a time."""
    text = texts_of(answered(prompts, said))
    return Work(text.response, read(on.inputs.model.cfg, text))


def of_attribution(on: Setting, _: Array, *, answers: TokenBatch, **__: Any) -> Work:
    """Return the tokens alone: the FLOPs are the kernel's and not known here."""
    return Work(texts_of(answers).tokens)


def of_judging(on: Setting, _: Judged, *, answers: TokenBatch, **__: Any) -> Work:
    """Return one pass of the policy and of every frozen decoder that is read."""
    text, model = texts_of(answers), on.inputs.model.cfg
    decoders = {"prior": on.prior.model.cfg} if on.prior else {}
    models = dict.fromkeys((*on.anchors, *on.logps_of))
    flops = sum(read(decoders.get(name, model), text) for name in models)
    return Work(text.tokens, read(model, text) + flops)


def of_reward(on: Setting, _: Array, *, mask: Array, **__: Any) -> Work:
    """Return the tokens of the answers: a few numbers each."""
    return Work(trues(mask))


def of_update(
    on: Setting,
    _: Any,
    *,
    experience: Experience,
    retain: TokenBatch | None = None,
    **__: Any,
) -> Work:
    """Return a gradient step on the answers, the anchor's logits, and a retain term."""
    text = texts_of(experience.answers)
    flops = learn(on.inputs.model.cfg, text, bool(on.inputs.frozen))
    if on.hp.kl_in == "loss":
        anchors = on.anchor_models
        flops += sum(forward_flops(x.cfg, 0, 0, text.response) for x in anchors)
    if retain is None:
        return Work(text.tokens, flops)
    return Work(text.tokens + texts_of(retain).tokens, flops + kept(on, retain))


def of_distillation(on: Setting, _: Any, *, retain: TokenBatch, **__: Any) -> Work:
    """Return a gradient step on retain text, and one pass of the reference."""
    return Work(texts_of(retain).tokens, kept(on, retain))


def kept(on: Setting, retain: TokenBatch) -> float:
    """Return the FLOPs of a gradient on retain text and of its teacher."""
    cfg, text = on.inputs.model.cfg, texts_of(retain)
    return learn(cfg, text, bool(on.inputs.frozen)) + read(cfg, text)


PHASES = {
    "rollout": Phase(rollout, rollout_options, of_rollout),
    "attribute": Phase(attribute, attribute_options, of_attribution),
    "judge": Phase(judge, judge_options, of_judging),
    "reward": Phase(reward, reward_options, of_reward),
    "advantage": Phase(advantage, advantage_options),
    "expect": Phase(expect, expect_options, of_attribution),
    "update": Phase(update, update_options, of_update),
    "distil": Phase(distil, distil_options, of_distillation),
    "measure": Phase(measure, measure_options),
}


def phases_of(setting: Setting) -> SimpleNamespace:
    """Return every phase, by name, as one row runs it."""
    bound = {name: phase.bound(name, setting) for name, phase in PHASES.items()}
    return SimpleNamespace(**bound)
