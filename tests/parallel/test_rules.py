"""Sharding rules: every parameter once, in the optimiser's state as well."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from dareu_jax.parallel import (
    abstract_on,
    init_sharded,
    make_mesh,
    shard,
    shardings_for,
)
from dareu_jax.parallel.rules import LOGICAL_RULES, MESH_AXES, logical_axes

pytestmark = pytest.mark.slow

L, D, NH, KH, H, F, V, O, R = 2, 8, 16, 8, 4, 12, 32, 3, 5  # noqa: E741
EXPECTED = {
    "embed/embedding": ((V, D), P("tensor", "fsdp")),
    "layers/attention/q/kernel": ((L, D, NH), P(None, "fsdp", "tensor")),
    "layers/attention/k/kernel": ((L, D, KH), P(None, "fsdp", "tensor")),
    "layers/attention/v/kernel": ((L, D, KH), P(None, "fsdp", "tensor")),
    "layers/attention/q/bias": ((L, NH), P(None, "tensor")),
    "layers/attention/k/bias": ((L, KH), P(None, "tensor")),
    "layers/attention/v/bias": ((L, KH), P(None, "tensor")),
    "layers/attention/o/kernel": ((L, NH, D), P(None, "tensor", "fsdp")),
    "layers/attention/q_norm/scale": ((L, H), P(None, None)),
    "layers/attention/k_norm/scale": ((L, H), P(None, None)),
    "layers/mlp/gate/kernel": ((L, D, F), P(None, "fsdp", "tensor")),
    "layers/mlp/up/kernel": ((L, D, F), P(None, "fsdp", "tensor")),
    "layers/mlp/down/kernel": ((L, F, D), P(None, "tensor", "fsdp")),
    "layers/attention_norm/scale": ((L, D), P(None, "fsdp")),
    "layers/mlp_norm/scale": ((L, D), P(None, "fsdp")),
    "final_norm/scale": ((D,), P("fsdp")),
    "layers/attention/o/bias": ((L, D), P(None, "fsdp")),
    "layers/attention_norm/bias": ((L, D), P(None, "fsdp")),
    "layers/mlp_norm_after/scale": ((L, D), P(None, "fsdp")),
    "layers/mlp/up/bias": ((L, F), P(None, "tensor")),
    "layers/mlp/down/bias": ((L, D), P(None, "fsdp")),
    "final_norm/bias": ((D,), P("fsdp")),
    "lm_head/kernel": ((D, V), P("fsdp", "tensor")),
    "layers/attention/q/lora_a": ((L, D, R), P(None, "fsdp", None)),
    "layers/attention/v/lora_b": ((L, R, KH), P(None, None, "tensor")),
    "layers/attention/o/lora_a": ((L, NH, R), P(None, "tensor", None)),
    "layers/attention/o/lora_b": ((L, R, D), P(None, None, "fsdp")),
    "layers/mlp/gate/lora_a": ((L, D, R), P(None, "fsdp", None)),
    "layers/mlp/up/lora_b": ((L, R, F), P(None, None, "tensor")),
    "layers/mlp/down/lora_a": ((L, F, R), P(None, "tensor", None)),
    "layers/mlp/down/lora_b": ((L, R, D), P(None, None, "fsdp")),
    "lm_head/lora_a": ((D, R), P("fsdp", None)),
    "lm_head/lora_b": ((R, V), P(None, "tensor")),
    "value_head/kernel": ((D, 1), P("fsdp", None)),
    "value_head/bias": ((1,), P(None)),
    "owner_head/kernel": ((D, O), P("fsdp", None)),
    "owner_head/bias": ((O,), P(None)),
    "code_head/kernel": ((D, R), P("fsdp", None)),
    "code_head/bias": ((R,), P(None)),
    "symbols/embedding": ((R, D), P(None, "fsdp")),
}


def fake_params():
    tree = {}
    for path, (shape, _) in EXPECTED.items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = jnp.ones(shape)
    return tree


@pytest.fixture
def mesh():
    return make_mesh(data=2, fsdp=2, tensor=2)


@pytest.mark.parametrize("prefix", ["", "decoder/", "0/mu/decoder/"])
@pytest.mark.parametrize("path", EXPECTED)
def test_every_parameter_matches_one_rule(prefix, path):
    names = logical_axes(prefix + path)
    assert len(names) == len(EXPECTED[path][0])
    assert all(name in MESH_AXES for name in names)


def test_every_rule_is_used():
    for pattern, _ in LOGICAL_RULES:
        assert any(re.fullmatch(pattern, path) for path in EXPECTED), pattern


@pytest.mark.parametrize(
    "path", ["layers/attention/r/kernel", "kernel", "my_lm_head/kernel", "lm_head"]
)
def test_an_unmatched_path_is_named(path):
    with pytest.raises(ValueError, match=f"'{path}' must match one sharding rule"):
        logical_axes(path)


def test_two_rules_for_a_path_are_named(monkeypatch):
    twice = (*LOGICAL_RULES, ("lm_.*/kernel", ("embed", "vocab")))
    monkeypatch.setattr("dareu_jax.parallel.rules.LOGICAL_RULES", twice)
    with pytest.raises(ValueError, match=r"matches lm_head/kernel, lm_\.\*/kernel"):
        logical_axes("lm_head/kernel")


def test_a_wrong_rank_is_named(mesh):
    with pytest.raises(ValueError, match="'lm_head/kernel' has shape"):
        shardings_for({"lm_head": {"kernel": jnp.ones((2, 2, 2))}}, mesh)


def test_arrays_with_axes_of_their_own_need_no_rule(mesh):
    like = jax.ShapeDtypeStruct((4, 8, V), jnp.float32)
    tree = {"mine": like, "shared": like, "number": jax.ShapeDtypeStruct((), "int32")}
    axes = {"mine": ("owners", "embed", "vocab"), "shared": (), "number": ()}
    specs = jax.tree.map(lambda x: x.spec, shardings_for(tree, mesh, axes))
    assert specs == {"mine": P(None, "fsdp", "tensor"), "shared": P(), "number": P()}
    axes["mine"] = ("owners", "a new name", "another")
    assert shardings_for(tree, mesh, axes)["mine"].is_fully_replicated
    there = abstract_on(tree, mesh, axes)["mine"]
    assert (there.shape, there.dtype) == (like.shape, like.dtype)
    assert there.sharding.is_fully_replicated
    with pytest.raises(ValueError, match=r"'mine' has shape \(4, 8, 32\), its axes"):
        shardings_for(tree, mesh, {**axes, "mine": ("owners",)})
    with pytest.raises(ValueError, match="'mine' must match one sharding rule"):
        shardings_for(tree, mesh)


def test_specs(mesh):
    specs = shardings_for({"decoder": fake_params()}, mesh)
    for path, sharding in jax.tree_util.tree_flatten_with_path(specs)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert sharding.spec == EXPECTED[name.removeprefix("decoder/")][1], name


def test_a_dimension_that_does_not_divide_is_replicated():
    mesh = make_mesh(data=1, fsdp=8)
    bias = shardings_for({"layers": {"mlp_norm": {"scale": jnp.ones((2, 12))}}}, mesh)
    assert bias["layers"]["mlp_norm"]["scale"].spec == P(None, None)


def test_optimiser_state_follows_its_parameters(mesh):
    params = fake_params()
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    state = jax.eval_shape(optimiser.init, params)
    adam = shardings_for(state, mesh)[1][0]
    assert adam.count.spec == P()
    assert adam.mu == adam.nu == shardings_for(params, mesh)


def test_shard_and_init_sharded_agree(mesh):
    def init(key, scale):
        draw = jax.random.normal(key, (V, D)) * scale
        return {"embed": {"embedding": draw}, "key": key}

    args = jax.random.key(0), jnp.float32(2)
    made, moved = init_sharded(init, mesh, *args), shard(init(*args), mesh)
    assert jax.tree.map(lambda x: x.sharding, made) == shardings_for(moved, mesh)
    assert made["embed"]["embedding"].addressable_shards[0].data.shape == (16, 4)
    np.testing.assert_array_equal(
        made["embed"]["embedding"], moved["embed"]["embedding"]
    )
