"""Low-rank adapters: by hand, beside the merged model, and the bookkeeping."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.config import LoraConfig
from dareu_jax.errors import UserError
from dareu_jax.models import (
    Decoder,
    DecoderConfig,
    generate,
    hidden_states,
    init_adapters,
    init_decoder,
    join,
    logits_of,
    merge,
    split,
)
from dareu_jax.models.layers import Dense
from dareu_jax.models.lora import TARGETS
from dareu_jax.parallel import make_mesh, shardings_for

CFG = DecoderConfig(
    vocab=40,
    layers=2,
    embed=16,
    heads=2,
    kv_heads=1,
    head_dim=8,
    ffn=24,
    lora_alpha=6.0,
    lora_dropout=0.5,
)
ALPHA, RANK = 6.0, 3


@functools.cache
def base(**changes):
    model = Decoder(dataclasses.replace(CFG, **changes))
    return model, jax.jit(lambda key: init_decoder(model, key=key))(jax.random.key(0))


def with_noise(params, targets=TARGETS, rank=RANK):
    """Parameters with adapters that do something: B is not zero."""
    adapters = init_adapters(params, rank, targets, key=jax.random.key(1))
    rng = np.random.default_rng(0)
    noise = jax.tree.map(
        lambda x: x + jnp.asarray(0.1 * rng.normal(size=x.shape), jnp.float32), adapters
    )
    return join(params, noise)


@functools.partial(jax.jit, static_argnums=0)
def logits(model, params, tokens, key=None):
    mask = jnp.ones(tokens.shape, bool)
    return logits_of(model, params, hidden_states(model, params, tokens, mask, key=key))


TOKENS = jnp.asarray(np.random.default_rng(2).integers(0, 40, (3, 7)), jnp.int32)


def test_a_dense_layer_adds_the_scaled_product():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(2, 5)), rng.normal(size=(5, 4))
    a, b = rng.normal(size=(5, 3)), rng.normal(size=(3, 4))
    params = {"kernel": w, "lora_a": a, "lora_b": b}
    params = {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}
    dense = Dense(4, lora_alpha=6.0)
    found = dense.apply({"params": params}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, x @ w + 6.0 / 3 * (x @ a @ b), rtol=1e-5)


def test_fresh_adapters_change_nothing():
    model, params = base()
    fresh = join(params, init_adapters(params, RANK, key=jax.random.key(1)))
    np.testing.assert_array_equal(
        logits(model, fresh, TOKENS), logits(model, params, TOKENS)
    )


@pytest.mark.parametrize("changes", [{}, {"tied": False}, {"remat": True}])
@pytest.mark.parametrize("targets", [TARGETS, ("q", "v"), ("down",)])
def test_merged_parameters_compute_the_same(changes, targets):
    model, params = base(**changes)
    adapted = with_noise(params, targets)
    merged = merge(adapted, ALPHA)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    found = logits(model, adapted, TOKENS)
    np.testing.assert_allclose(found, logits(model, merged, TOKENS), atol=2e-5)
    assert np.abs(found - logits(model, params, TOKENS)).max() > 1e-2


def test_the_head_can_be_adapted_where_it_is_untied():
    model, params = base(tied=False)
    adapted = with_noise(params, ("lm_head",))
    merged = merge(adapted, ALPHA)
    np.testing.assert_allclose(
        logits(model, adapted, TOKENS), logits(model, merged, TOKENS), atol=2e-5
    )


def test_split_and_join_are_inverse_and_copy_nothing():
    _, params = base()
    adapted = with_noise(params)
    trainable, frozen = split(adapted)
    assert jax.tree.structure(frozen) == jax.tree.structure(params)
    assert all(a is b for a, b in zip(jax.tree.leaves(frozen), jax.tree.leaves(params)))
    chex.assert_trees_all_equal(join(frozen, trainable), adapted)
    assert split(params) == (params, {})
    assert join({}, params) == params


def test_gradients_are_those_of_the_adapters_alone():
    model, params = base()
    trainable, frozen = split(with_noise(params))

    def loss(trainable):
        return jnp.mean(logits(model, join(frozen, trainable), TOKENS) ** 2)

    grads = jax.grad(loss)(trainable)
    assert jax.tree.structure(grads) == jax.tree.structure(trainable)
    assert all(np.asarray(g).any() for g in jax.tree.leaves(grads))


def test_a_bfloat16_base_has_float32_adapters():
    model, params = base(param_dtype="bfloat16", compute_dtype="bfloat16")
    adapted = with_noise(params)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(split(adapted)[0]))
    merged = merge(adapted, ALPHA)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(merged))
    found, wanted = logits(model, adapted, TOKENS), logits(model, merged, TOKENS)
    np.testing.assert_allclose(found, wanted, atol=0.1)


def test_dropout_of_adapters_needs_a_key():
    model, params = base()
    adapted = with_noise(params)
    still = logits(model, adapted, TOKENS)
    np.testing.assert_array_equal(still, logits(model, adapted, TOKENS))
    moved = [logits(model, adapted, TOKENS, jax.random.key(i)) for i in range(2)]
    assert np.abs(moved[0] - still).max() > 1e-3
    assert np.abs(moved[0] - moved[1]).max() > 1e-3
    plain = logits(model, params, TOKENS, jax.random.key(0))
    np.testing.assert_array_equal(plain, logits(model, params, TOKENS))


@pytest.mark.slow
def test_generation_reads_adapters():
    model, params = base()
    adapted = with_noise(params)
    rollouts = [
        generate(
            model,
            tree,
            TOKENS,
            jnp.ones(TOKENS.shape, bool),
            max_new_tokens=6,
            temperature=0.0,
            stop_ids=(-1,),
            key=jax.random.key(0),
        )
        for tree in (adapted, merge(adapted, ALPHA))
    ]
    np.testing.assert_array_equal(rollouts[0].tokens, rollouts[1].tokens)


def test_shapes_and_places_of_adapters():
    _, params = base()
    adapters = init_adapters(params, RANK, key=jax.random.key(0))
    attention = adapters["layers"]["attention"]
    assert attention["q"]["lora_a"].shape == (2, 16, RANK)
    assert attention["q"]["lora_b"].shape == (2, RANK, 16)
    assert attention["k"]["lora_b"].shape == (2, RANK, 8)
    assert adapters["layers"]["mlp"]["down"]["lora_a"].shape == (2, 24, RANK)
    placed = shardings_for(adapters, make_mesh(1, 4, 2))
    assert jax.tree.structure(placed) == jax.tree.structure(adapters)
    spec = placed["layers"]["attention"]["q"]["lora_a"].spec
    assert spec == jax.sharding.PartitionSpec(None, "fsdp", None)


def test_adapters_depend_on_key_and_path_alone():
    _, params = base()
    some = init_adapters(params, RANK, ("q",), key=jax.random.key(0))
    more = init_adapters(params, RANK, ("q", "k"), key=jax.random.key(0))
    q, k = (more["layers"]["attention"][n]["lora_a"] for n in "qk")
    np.testing.assert_array_equal(some["layers"]["attention"]["q"]["lora_a"], q)
    assert np.abs(q - k).max() > 0.01 and np.abs(q).max() <= 16**-0.5


def test_an_unknown_target_is_named():
    _, params = base()
    with pytest.raises(UserError, match="no dense layer 'query'"):
        init_adapters(params, RANK, ("q", "query"), key=jax.random.key(0))


def test_defaults_are_those_of_the_paper():
    lora = LoraConfig()
    assert (lora.rank, lora.alpha, lora.dropout) == (8, 16, 0.05)
