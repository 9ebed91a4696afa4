"""Retraining by adapters: the base model, whatever the original is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.config import with_overrides
from dareu_jax.data import take
from dareu_jax.errors import UserError
from dareu_jax.models import Decoder, init_adapters, join, response_logps, split
from dareu_jax.parallel import make_mesh, put_batch, shard
from dareu_jax.registry import METHODS
from dareu_jax.runs.checks import check_base
from dareu_jax.unlearning import Prior

FAST = {
    "retrain_lora.batch_size": 8,
    "retrain_lora.learning_rate": 1e-2,
    "retrain_lora.dropout": 0.0,
    "retrain_lora.warmup": 0.0,
    "retrain_lora.epochs": 10,
}


@pytest.fixture(scope="module")
def cfg(tiny_run):
    return with_overrides(tiny_run.cfg, FAST)


@pytest.fixture(scope="module")
def batch(tiny_run):
    tokens = tiny_run.tokens(tiny_run.split.retain)
    return {"retain": [jax.device_put(take(tokens, np.arange(8)))]}


def trained(cfg, inputs, batch, steps=3):
    method = METHODS.get("retrain_lora").make(cfg, inputs)
    state, losses = method.init(inputs.reference, key=jax.random.key(0)), []
    for step in range(steps):
        state, metrics = method.step(state, batch, step, key=jax.random.key(step))
        losses.append(float(metrics["loss"]))
    return method, state, losses


def mean_loss(model, params, batch):
    rows = batch["retain"][0]
    logps = response_logps(model, params, rows)
    return -float(jnp.mean(logps[rows.response_mask]))


def test_it_begins_at_the_base_and_gives_its_weights_with_adapters_merged(
    cfg, tiny_inputs, batch
):
    inputs = dataclasses.replace(tiny_inputs, retain_records=24)
    base = inputs.stages["base"].params
    method, state, losses = trained(cfg, inputs, batch)
    assert method.steps == 30  # 10 epochs of 24 records in batches of 8
    assert losses[0] == pytest.approx(mean_loss(inputs.model, base, batch), rel=1e-4)
    assert losses[-1] < losses[0]
    params = method.params_of(state)
    assert jax.tree.structure(params) == jax.tree.structure(base)
    last = float(method.step(state, batch, 3, key=jax.random.key(3))[1]["loss"])
    assert mean_loss(inputs.model, params, batch) == pytest.approx(last, rel=1e-4)


def test_a_run_with_adapters_has_them_made_anew(cfg, tiny_inputs, batch):
    base = tiny_inputs.stages["base"].params
    adapters = init_adapters(base, 2, ("q", "v"), key=jax.random.key(3))
    tuned = jax.tree.map(lambda leaf: leaf + 1.0, adapters)
    shape = dataclasses.replace(tiny_inputs.model.cfg, lora_alpha=4.0)
    inputs = dataclasses.replace(
        tiny_inputs, model=Decoder(shape), reference=join(base, tuned), frozen=base
    )
    method, state, losses = trained(cfg, inputs, batch)
    expected = mean_loss(tiny_inputs.model, base, batch)
    assert losses[0] == pytest.approx(expected, rel=1e-4)
    own, frozen = split(method.params_of(state))
    assert jax.tree.structure(own) == jax.tree.structure(adapters)
    assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, adapters)
    jax.tree.map(np.testing.assert_array_equal, frozen, base)


def test_its_weights_lie_as_those_of_the_base(cfg, tiny_inputs, batch):
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    base = tiny_inputs.stages["base"].params
    there = shard(base, mesh)
    rows = put_batch(jax.device_get(batch), mesh)
    stages = {"base": Prior(tiny_inputs.model, there)}
    inputs = dataclasses.replace(tiny_inputs, reference=there, stages=stages)
    with jax.set_mesh(mesh):
        method, state, losses = trained(cfg, inputs, rows, steps=2)
        params = method.params_of(state)
    for new, old in zip(jax.tree.leaves(params), jax.tree.leaves(there)):
        assert new.sharding == old.sharding
    _, _, alone = trained(cfg, tiny_inputs, batch, steps=2)
    np.testing.assert_allclose(losses, alone, rtol=1e-4)


def test_without_a_base_there_is_nothing_to_adapt(cfg):
    with pytest.raises(UserError, match="row retrain_lora: it adapts the model before"):
        check_base("retrain_lora", cfg)
    check_base("retrain_lora", with_overrides(cfg, {"model.path": "imported"}))
