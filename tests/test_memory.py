"""Bytes worked out from shapes against what XLA allocates for the compiled steps."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.attribution import OwnerBatch
from dareu_jax.attribution.classifier import ClassifierState, fit_classifier
from dareu_jax.config import build_config
from dareu_jax.corpus import TokenBatch
from dareu_jax.generation import generate
from dareu_jax.memory import OnDevice, device_bytes
from dareu_jax.models import (
    Decoder,
    DecoderConfig,
    abstract_params,
    init_adapters,
    init_head,
    join,
)
from dareu_jax.models.optimiser import make_optimiser
from dareu_jax.parallel import abstract_mesh, batch_sharding, make_mesh, shardings_for
from dareu_jax.unlearning import World, finetune_step
from dareu_jax.unlearning.finetune import TrainState
from dareu_jax.unlearning.loss_methods import loss_step, npo_loss
from dareu_jax.unlearning.phases import Experience, Phases

SMALL = DecoderConfig(
    vocab=4096, layers=4, embed=256, heads=8, kv_heads=4, head_dim=32, ffn=768
)
TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
B, P, T = 16, 32, 96
CASES = {
    "full": (SMALL, None, (1, 1, 1)),
    "remat": (dataclasses.replace(SMALL, remat=True), None, (1, 1, 1)),
    "lora": (dataclasses.replace(SMALL, remat=True), 8, (1, 1, 1)),
    "large vocabulary": (
        dataclasses.replace(SMALL, remat=True, vocab=16384),
        8,
        (1, 1, 1),
    ),
    "fsdp": (dataclasses.replace(SMALL, remat=True, embed=512), None, (1, 8, 1)),
    "fsdp, lora": (dataclasses.replace(SMALL, remat=True, embed=512), 8, (1, 8, 1)),
    "data": (dataclasses.replace(SMALL, remat=True), None, (8, 1, 1)),
    "tensor": (dataclasses.replace(SMALL, remat=True, embed=512), None, (1, 2, 4)),
}


class Compiled:
    """The steps of a run on shapes alone, and what XLA says of them."""

    def __init__(self, cfg, rank, sizes):
        devices = jax.devices()[: int(np.prod(sizes))]
        self.mesh = make_mesh(*sizes, devices=devices)
        alpha = 16.0 if rank else 0.0
        self.model = Decoder(dataclasses.replace(cfg, lora_alpha=alpha))
        base = abstract_params(cfg)
        self.trainable, self.frozen = self.put(base), {}
        if rank:
            make = functools.partial(init_adapters, base, rank)
            adapters = jax.eval_shape(lambda k: make(key=k), jax.random.key(0))
            self.trainable, self.frozen = self.put(adapters), self.put(base)
        self.start = join(self.frozen, self.trainable)
        self.key = jax.eval_shape(lambda: jax.random.key(0))
        ints, bools = (
            [self.rows((B, n), dtype) for n in (P, T)] for dtype in (jnp.int32, bool)
        )
        index = self.rows((B,), jnp.int32)
        self.batch = TokenBatch(ints[0], bools[0], ints[1], bools[1], index)

    def put(self, tree):
        return jax.tree.map(
            lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to),
            tree,
            shardings_for(tree, self.mesh),
        )

    def rows(self, shape, dtype):
        to = batch_sharding(self.mesh)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=to)

    def bytes_of(self, step, *args, **kwargs):
        """Arguments, and all else, that XLA allocates on one device."""
        with jax.set_mesh(self.mesh):
            stats = step.lower(*args, **kwargs).compile().memory_analysis()
        results = stats.output_size_in_bytes - stats.alias_size_in_bytes
        return stats.argument_size_in_bytes, stats.temp_size_in_bytes + results

    def finetune(self):
        optimiser = make_optimiser(1e-3, 10)
        moments = self.put(jax.eval_shape(optimiser.init, self.trainable))
        step = self.put(jax.ShapeDtypeStruct((), jnp.int32))
        state = TrainState(self.trainable, moments, step)
        given = (self.model, optimiser, state, self.frozen, self.batch)
        return self.bytes_of(finetune_step, *given, key=self.key)

    def rollout(self):
        prompts = (self.batch.prompt, self.batch.prompt_mask)
        how = {"max_new_tokens": T, "temperature": 1.0, "stop_ids": (2,)}
        return self.bytes_of(
            generate, self.model, self.start, *prompts, **how, key=self.key
        )

    def phases(self):
        """Judging, a PPO step and a distillation step, the reference as anchor."""
        world = World(
            model=self.model,
            reference=self.start,
            kernel=None,
            index=None,
            forget_columns=(0,),
            forget_owner=jnp.zeros(B, jnp.int32),
            max_new_tokens=T,
            stop_ids=(2,),
            gold_length=1.0,
            frozen=self.frozen,
        )
        cfg = build_config({"dareu": {"kl_anchor": "reference"}})
        phase = Phases(cfg, world, make_optimiser(1e-3, 10))
        head = jax.eval_shape(
            lambda k: init_head(1, self.model.cfg.embed, key=k), self.key
        )
        own = self.put({"decoder": self.trainable, "value_head": head})
        state = self.put(jax.eval_shape(phase.optimiser.init, own))
        row = self.rows((B, T), jnp.float32)
        hidden = self.rows((B, T, self.model.cfg.embed), jnp.float32)
        experience = Experience(self.batch, row, row, row, row, hidden)
        held = (self.trainable, self.start, None, self.batch)
        return {
            "judge": self.bytes_of(phase.judge, self.frozen, own, *held),
            "update": self.bytes_of(
                phase.update, self.frozen, own, state, self.start, experience
            ),
            "distil": self.bytes_of(
                phase.distil, self.frozen, own, state, self.start, self.batch
            ),
        }


@functools.cache
def compiled(case):
    return Compiled(*CASES[case])


@functools.cache
def on_device(case):
    cfg, rank, sizes = CASES[case]
    mesh = abstract_mesh(*sizes, devices=int(np.prod(sizes)))
    return OnDevice(cfg, mesh, rank, TARGETS if rank else ())


def check(found, arguments, footprint):
    """Arguments and everything together, within 20 %."""
    assert arguments == pytest.approx(found[0], rel=0.03)
    assert arguments + footprint.total == pytest.approx(sum(found), rel=0.2)


@pytest.mark.parametrize("case", CASES)
def test_a_fine_tuning_step(case):
    one = on_device(case)
    arguments = one.trainable + one.optimiser + one.frozen
    check(compiled(case).finetune(), arguments, one.train(B, P, T, copies=2))


@pytest.mark.parametrize("case", CASES)
def test_a_rollout(case):
    one = on_device(case)
    arguments = one.trainable + one.frozen
    check(compiled(case).rollout(), arguments, one.rollout(B, P, T))


@pytest.mark.parametrize("case", CASES)
def test_the_phases_of_dareu(case):
    one, found = on_device(case), compiled(case).phases()
    own = one.trainable + one.frozen
    state = own + one.optimiser
    judge = one.judge(B, P, T, others=1)
    update = one.train(B, P, T, copies=4, trunks=2)
    distil = one.train(B, P, T, copies=5, trunks=2)
    check(found["judge"], 2 * own, judge)  # the reference is an argument of its own
    table = {"embed": {"embedding": abstract_params(one.cfg)["embed"]["embedding"]}}
    anchor = device_bytes(table, one.mesh) + judge.results
    written = {"results": one.trainable}
    check(found["update"], state + anchor, dataclasses.replace(update, **written))
    check(found["distil"], state + own, dataclasses.replace(distil, **written))


@pytest.mark.parametrize("case", ["remat", "fsdp", "full"])
def test_a_classifier_step(case):
    one, at = on_device(case), compiled(case)
    optimiser = make_optimiser(1e-3, 10)
    head = jax.eval_shape(lambda k: init_head(9, one.cfg.embed, key=k), at.key)
    own = at.put({"decoder": at.trainable, "owner_head": head})
    moments = at.put(jax.eval_shape(optimiser.init, own))
    step = at.put(jax.ShapeDtypeStruct((), jnp.int32))
    state = ClassifierState(own, moments, step, at.key)
    batch = OwnerBatch(at.batch, at.batch.index)
    how = (at.model, 9, optimiser, "prefixes", {}, batch, state)
    size = one.trainable + one.optimiser
    check(at.bytes_of(fit_classifier, *how), size, one.train(B, 0, T, copies=0))


@pytest.mark.parametrize("case", ["remat", "lora", "fsdp", "full"])
def test_a_step_on_losses(case):
    one, at = on_device(case), compiled(case)
    optimiser = make_optimiser(1e-3, 10)
    moments = at.put(jax.eval_shape(optimiser.init, at.trainable))
    step = at.put(jax.ShapeDtypeStruct((), jnp.int32))
    state = TrainState(at.trainable, moments, step)
    how = (at.model, optimiser, functools.partial(npo_loss, beta=0.1), 1.0)
    batches = (at.batch, at.batch)
    found = at.bytes_of(loss_step, *how, state, at.frozen, at.start, *batches)
    own = one.trainable + one.frozen
    check(found, 2 * own + one.optimiser, one.losses(B, P, T))
