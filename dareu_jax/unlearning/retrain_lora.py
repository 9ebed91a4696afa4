"""Retraining by adapters: the base model, tuned on the retain records alone.

No unlearning: what low-rank adapters (Hu et al., 2021) trained instead cost and give.
"""

import dataclasses
from typing import Any

import jax

from dareu_jax.config import LoraConfig, OptimiserConfig, RunConfig
from dareu_jax.data.batches import steps_per_epoch
from dareu_jax.models import Decoder, init_adapters, join, merge, split
from dareu_jax.models.lora import A
from dareu_jax.parallel import named_leaves
from dareu_jax.registry import METHODS
from dareu_jax.training.finetune import (
    TrainState,
    finetune_step,
    init_training,
    training_steps,
)
from dareu_jax.training.optimiser import optimiser_of
from dareu_jax.training.throughput import Work
from dareu_jax.training.work import training_work
from dareu_jax.unlearning.method import Batches, Method, MethodInputs, Need

Array = jax.Array


class RetrainLoraConfig(OptimiserConfig, LoraConfig):
    """Adapters of the base model and their training; a run with ``lora`` has its own.

    Such a run gives rank, alpha, dropout and targets.
    """


def needs(cfg: RunConfig) -> dict[str, Need]:
    """Return the retain batch of a step."""
    hp: RetrainLoraConfig = cfg.options("retrain_lora")
    key = "retrain_lora.batch_size"
    return {"retain": Need(hp.batch_size, 1, key, hp.microbatch_size)}


@METHODS.register(
    "retrain_lora",
    "no unlearning: adapters of the base model trained on retain",
    options=RetrainLoraConfig,
    needs=needs,
    reads=lambda cfg: ("base",),
)
def make_retrain_lora(cfg: RunConfig, inputs: MethodInputs) -> Method:
    """Return supervised training of fresh adapters on the base model."""
    hp: RetrainLoraConfig = cfg.options("retrain_lora")
    model, base = inputs.model, inputs.frozen or inputs.stages["base"].params
    if not inputs.frozen:
        shape = dataclasses.replace(
            model.cfg, lora_alpha=hp.alpha, lora_dropout=hp.dropout
        )
        model = Decoder(shape)
    steps = training_steps(hp, steps_per_epoch(inputs.retain_records, hp.batch_size))
    optimiser = optimiser_of(hp, steps)

    def work(_, model, optimiser, state, frozen, batch, **how) -> Work:
        return training_work(model.cfg, [batch], frozen)

    timed_step = inputs.watch.timed("update", finetune_step, work)

    def init(params: Any, *, key: Array) -> TrainState:
        adapters = fresh_adapters(params, hp, key=key)
        return init_training(model, optimiser, join(params, adapters), key=key)

    def step(state: TrainState, batch: Batches, step: int, *, key: Array):
        return timed_step(
            model,
            optimiser,
            state,
            base,
            batch["retain"][0],
            microbatch_size=hp.microbatch_size,
            key=key,
        )

    def params_of(state: TrainState) -> Any:
        whole = join(base, state.params)
        return whole if inputs.frozen else merged_like(base, whole, hp.alpha)

    return Method(steps, init, step, params_of, headline="loss")


def fresh_adapters(params: Any, hp: RetrainLoraConfig, *, key: Array) -> Any:
    """Return adapters that change nothing yet: as ``hp`` says, or as ``params`` have.

    Adapters of ``params`` are made anew, with their rank and at their places.
    """
    adapters, frozen = split(params)
    if not frozen:
        return init_adapters(params, hp.rank, hp.targets, key=key)
    known = {
        path.split("/")[-2]: leaf.shape[-1]
        for path, leaf in named_leaves(adapters)
        if path.endswith(A)
    }
    rank = next(iter(known.values()))
    return init_adapters(frozen, rank, tuple(known), key=key)


def merged_like(base: Any, params: Any, alpha: float) -> Any:
    """Return ``params`` with adapters merged, split over the devices as ``base`` is."""
    there = jax.tree.map(lambda leaf: leaf.sharding, base)
    return jax.jit(merge, static_argnums=1, out_shardings=there)(params, alpha)
