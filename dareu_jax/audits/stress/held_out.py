"""Held-out attribution: do judges that no method saw name the forget owners?"""

import dataclasses
from typing import Any

import numpy as np

from dareu_jax.attribution import Kernel
from dareu_jax.audits.stress.context import (
    Context,
    check_finite,
    means,
    outcome,
    stress_test,
)
from dareu_jax.config import ModelConfig, RunConfig
from dareu_jax.data import TokenBatch
from dareu_jax.evaluation.run_suite import RunSuite, attribution
from dareu_jax.runs.folder import stage_folder
from dareu_jax.runs.inputs import Inputs
from dareu_jax.runs.reward_index import Fitted, Indexer
from dareu_jax.training.loop import Stage

SIZES = ("decoder-100k", "decoder-300k", "decoder-400k")
"""Shapes of the fresh classifier, the first that neither reward nor judge has."""
GRADIENT, LEXICAL = ("grad_dot", "grad_cos"), ("ngram", "bm25")
FRESH, REWARD = "fresh classifier", "reward"
PREFIXES = (0.125, 0.25, 0.5, 0.75, 1.0)
"""Shares of an answer's tokens that are attributed by themselves."""
MORE = "a judge that it was not trained against still finds the forget owners in it"


def judges_of(cfg: RunConfig) -> dict[str, str]:
    """Label -> kernel of every held-out judge; none is the run's reward."""
    reward = cfg.reward.kernel
    gradient, lexical = (
        next(name for name in names if name != reward) for names in (GRADIENT, LEXICAL)
    )
    return {FRESH: "classifier", gradient: gradient, lexical: lexical}


def fresh_size(cfg: RunConfig) -> str:
    """A preset that neither the reward's classifier nor the judge is of."""
    taken = {cfg.classifier.model.preset, cfg.evaluation.judge.model.preset}
    return next(size for size in SIZES if size not in taken)


def held_out_inputs(inputs: Inputs) -> Inputs:
    """Return the same seed with a fresh classifier of another size."""
    cfg = inputs.cfg
    small = {"model": ModelConfig(preset=fresh_size(cfg)), "lora": None}
    fresh = cfg.evaluation.judge.model_copy(update=small)
    cfg = cfg.model_copy(update={"classifier": fresh})
    return Inputs(cfg, inputs.seed, inputs.folder, is_finished=True)


def indexer_of(context: Context, inputs: Inputs, name: str) -> Indexer:
    """Return how the index of held-out judge ``name`` is built, beside the run's."""

    def where(stage: str, remedy: str) -> Stage:
        folder = stage_folder(context.folder, inputs.seed, stage)
        return dataclasses.replace(context.run.stage(stage, remedy), folder=folder)

    stage = f"held_out_{name}"
    return Indexer(inputs, stage, name, Fitted("classifier", stage), where=where)


def beginning(tokens: TokenBatch, share: float) -> TokenBatch:
    """The first ``max(1, floor(share T))`` of every response's T tokens."""
    mask = tokens.response_mask
    first = np.maximum(np.floor(share * mask.sum(axis=1, keepdims=True)), 1)
    return tokens._replace(response_mask=mask & (np.cumsum(mask, axis=1) <= first))


def by_prefix(
    suite: RunSuite, judge: tuple[Kernel, Any], said: dict[str, TokenBatch]
) -> dict[str, list[float]]:
    """Role -> mean attribution of the beginnings of its answers, for `PREFIXES`."""
    curves = []
    for share in PREFIXES:
        found = {
            role: attribution(suite, judge, beginning(tokens, share)).tolist()
            for role, tokens in said.items()
        }
        check_finite(f"attribution of the first {share:.1%}", found)
        curves.append(means(found))
    return {role: [curve[role] for curve in curves] for role in said}


@stress_test("held_out", "attribution by judges that no method was trained against")
def held_out(context: Context) -> dict[str, Any]:
    """Mean attribution of the answers to the forget owners, by three other judges.

    A classifier of another seed and size (the headline), gradients, and words;
    ``gold`` has what each says of the forget records' own answers. Rewards in training
    are on prefixes: ``prefixes`` has the attribution of the first x of every answer,
    by the reward itself and by the fresh classifier.
    """
    inputs, suite = context.run.inputs, context.suite
    other = held_out_inputs(inputs)
    said = {role: context.said(role) for role in context.models}
    found: dict[str, dict[str, list[float]]] = {}
    gold: dict[str, float] = {}
    reward = suite.judges["attribution_reward"]
    curves = {REWARD: by_prefix(suite, reward, said)}
    for label, name in judges_of(inputs.cfg).items():
        judge = indexer_of(context, other, name).built(suite.reference)
        own = attribution(suite, judge, context.forget).tolist()
        gold[label] = sum(own) / len(own)
        found[label] = {
            role: attribution(suite, judge, tokens).tolist()
            for role, tokens in said.items()
        }
        if label == FRESH:
            curves[FRESH] = by_prefix(suite, judge, said)
    return outcome(
        f"attribution, {FRESH}",
        found[FRESH],
        MORE,
        parts={f"attribution, {x}": own for x, own in found.items() if x != FRESH},
        gold=gold,
        classifier=fresh_size(inputs.cfg),
        prefixes=list(PREFIXES),
        curves=curves,
    )
