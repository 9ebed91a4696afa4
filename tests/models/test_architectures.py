"""What sets families apart: cached decoding, adapters and sharding hold for all."""

import dataclasses
import functools

import architectures
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.errors import UserError
from dareu_jax.models import (
    Decoder,
    DecoderConfig,
    forward_flops,
    generate,
    hidden_states,
    init_adapters,
    init_decoder,
    join,
    logits_of,
    merge,
    split,
)
from dareu_jax.models.scoring import layer_states
from dareu_jax.parallel import named_leaves
from dareu_jax.parallel.rules import table_axes

pytestmark = pytest.mark.slow

PLAIN = DecoderConfig(
    vocab=40, layers=3, embed=16, heads=4, kv_heads=2, head_dim=8, ffn=24
)
GEMMA3 = dataclasses.replace(
    PLAIN, **architectures.GEMMA3, sliding_window=4, score_dim=5, tied=False
)
PYTHIA = dataclasses.replace(PLAIN, **architectures.PYTHIA)
OLMO2 = dataclasses.replace(PLAIN, **architectures.OLMO2, o_bias=True, mlp_bias=True)
ALL = {"gemma3": GEMMA3, "pythia": PYTHIA, "olmo2": OLMO2}
P, NEW = 7, 6


@functools.cache
def made(name):
    """Decoder and parameters, every one of them moved from its start."""
    model, key = Decoder(ALL[name]), jax.random.key(0)
    params = jax.jit(lambda key: init_decoder(model, key=key))(key)
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    moved = [x + jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype) for x in leaves]
    return model, jax.tree.unflatten(tree, moved)


def texts(rows=3, length=P):
    rng = np.random.default_rng(1)
    tokens = rng.integers(1, 40, (rows, length)).astype(np.int32)
    mask = np.arange(length)[None] >= np.array([[0], [3], [length - 1]])[:rows]
    return jnp.asarray(tokens), jnp.asarray(mask)


@functools.partial(jax.jit, static_argnums=0)
def logits(model, params, tokens, mask):
    return logits_of(model, params, hidden_states(model, params, tokens, mask))


@pytest.mark.parametrize("name", ALL)
def test_sampling_with_a_cache_is_decoding_without(name):
    (model, params), (tokens, mask) = made(name), texts()
    said = generate(
        model,
        params,
        tokens,
        mask,
        max_new_tokens=NEW,
        temperature=1.0,
        stop_ids=(-1,),
        key=jax.random.key(2),
    )
    whole = jnp.concatenate([tokens, said.tokens], axis=1)
    seen = jnp.concatenate([mask, said.mask], axis=1)
    logps = jax.nn.log_softmax(logits(model, params, whole, seen)[:, P - 1 : -1])
    wanted = jnp.take_along_axis(logps, said.tokens[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(said.logps, wanted, atol=2e-5)


@pytest.mark.parametrize("name", ALL)
def test_adapters_of_every_product_can_be_merged(name):
    (model, params), (tokens, mask) = made(name), texts()
    fresh = init_adapters(params, 2, key=jax.random.key(3))
    moved = jax.tree.map(lambda x: x + 0.1, fresh)
    products = {"q", "k", "v", "o", "up", "down"} | set(["gate"][: model.cfg.gated])
    assert {path.split("/")[-2] for path, _ in named_leaves(fresh)} == products
    adapted = join(params, moved)
    model = Decoder(dataclasses.replace(model.cfg, lora_alpha=4.0))
    found = logits(model, merge(adapted, 4.0), tokens, mask)
    wanted = logits(model, adapted, tokens, mask)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    assert np.abs(np.asarray(wanted - logits(model, params, tokens, mask))).max() > 0.01
    jax.tree.map(np.testing.assert_array_equal, split(adapted)[0], moved)


@pytest.mark.parametrize("name", ALL)
def test_every_parameter_has_a_sharding_rule(name):
    _, params = made(name)
    axes = dict(named_leaves(table_axes(params)))
    for path, leaf in named_leaves(params):
        found = [axes[own] for own in axes if own.rsplit("/", 1)[0] == path]
        assert len(found) == leaf.ndim, path


@pytest.mark.parametrize("name", ALL)
def test_the_first_layers_alone_are_those_of_the_whole(name):
    (model, params), (tokens, mask) = made(name), texts()
    short = Decoder(model.cfg.first(2))
    first = {**params, "layers": jax.tree.map(lambda x: x[:2], params["layers"])}
    states = layer_states(model, params, tokens, mask, 2)
    wanted = layer_states(short, first, tokens, mask, 2)
    np.testing.assert_array_equal(states, wanted)
    whole = layer_states(model, params, tokens, mask, 3)
    assert np.abs(np.asarray(whole - states)).max() > 1e-3


def test_a_window_on_some_layers_hides_what_all_of_them_would_show():
    model, params = made("gemma3")
    tokens, mask = texts(1, 12)
    changed = tokens.at[0, 0].add(1)

    def moved(**fields):
        own = Decoder(dataclasses.replace(model.cfg, **fields))
        apart = logits(own, params, tokens, mask) - logits(own, params, changed, mask)
        return np.abs(np.asarray(apart))[0, -1].max()

    assert moved(windowed=None, layers=3) == 0.0  # 3 layers of 4 tokens back: 9 at most
    assert moved() > 1e-4


def test_layers_without_positions_see_a_set_of_tokens():
    cfg = dataclasses.replace(OLMO2, layers=1, rotated=(False,))
    model, params = Decoder(cfg), made("olmo2")[1]
    params = {**params, "layers": jax.tree.map(lambda x: x[:1], params["layers"])}
    tokens, mask = texts(1)
    turned = jnp.concatenate([tokens[:, :-1][:, ::-1], tokens[:, -1:]], axis=1)
    found = logits(model, params, turned, mask)[0, -1]
    wanted = logits(model, params, tokens, mask)[0, -1]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_operations_of_a_plain_feed_forward_layer_are_two_products():
    gated = forward_flops(dataclasses.replace(PYTHIA, gated=True), 10, 1, 0)
    plain = forward_flops(PYTHIA, 10, 1, 0)
    assert gated - plain == 2 * 10 * 3 * 16 * 24


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"activation": "tanh"}, "model.activation = 'tanh'; known: silu, gelu"),
        ({"norm_place": "none"}, "model.norm_place = 'none'; known: before"),
        ({"windowed": (True,), "sliding_window": 3}, "windowed.*of 3 layers"),
        ({"windowed": (True,) * 3}, "windowed needs model.sliding_window"),
        ({"rotary_share": 0.1}, "rotary_share = 0.1 of 8"),
    ],
)
def test_shapes_that_cannot_be_are_named(fields, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(PLAIN, **fields)
