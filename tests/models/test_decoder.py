"""The decoder against a plain NumPy writing, and the properties it must keep."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.errors import UserError
from dareu_jax.models import (
    Decoder,
    DecoderConfig,
    hidden_states,
    init_decoder,
    logits_of,
)
from dareu_jax.models.layers import RMSNorm, rope_frequencies, rotate

CFG = DecoderConfig(
    vocab=64, layers=1, embed=32, heads=2, kv_heads=1, head_dim=16, ffn=64
)
LLAMA3 = {
    "type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position": 64.0,
}
T = 12


def as_tuple(scaling):
    return tuple(sorted(scaling.items()))


VARIANTS: dict[str, dict[str, Any]] = {
    "preset": {},
    "two layers": {"layers": 2},
    "qk_norm": {"qk_norm": True},
    "qkv_bias": {"qkv_bias": True},
    "untied": {"tied": False},
    "grouped heads and scaled rope": {
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 8,
        "rope_scaling": as_tuple(LLAMA3),
    },
}


def noisy(params):
    """Moves every parameter, so that no bias is 0 and no norm scale is 1."""
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    moved = [x + jnp.asarray(0.2 * rng.normal(size=x.shape), x.dtype) for x in leaves]
    return jax.tree.unflatten(tree, moved)


@functools.cache
def model_and_params(**changes):
    model = Decoder(dataclasses.replace(CFG, **changes))
    init = jax.jit(lambda key: init_decoder(model, key=key))
    return model, noisy(init(jax.random.key(0)))


@functools.partial(jax.jit, static_argnums=0)
def logits(model, params, tokens, mask):
    return logits_of(model, params, hidden_states(model, params, tokens, mask))


def random_tokens(rows, width=T):
    tokens = np.random.default_rng(1).integers(0, CFG.vocab, (rows, width))
    return jnp.asarray(tokens, jnp.int32)


def np_rms(x, scale, eps=1e-6):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale


def np_frequencies(head_dim, theta, scaling):
    freq = np.array([theta ** (-2.0 * i / head_dim) for i in range(head_dim // 2)])
    if scaling is None:
        return freq
    rule = dict(scaling)
    if rule["type"] == "linear":
        return freq / rule["factor"]
    out = []
    for f in freq:
        turns = rule["original_max_position"] * f / (2 * np.pi)
        low, high = rule["low_freq_factor"], rule["high_freq_factor"]
        share = np.clip((turns - low) / (high - low), 0.0, 1.0)  # 1 = leave as it is
        out.append(share * f + (1 - share) * f / rule["factor"])
    return np.array(out)


def np_rotate(x, positions, freq):
    """Rotates the pairs ``(x_i, x_(i + H/2))`` by ``position * freq_i``."""
    out, half = np.empty_like(x), x.shape[-1] // 2
    for t, position in enumerate(positions):
        for i in range(half):
            c, s = np.cos(position * freq[i]), np.sin(position * freq[i])
            a, b = x[t, :, i], x[t, :, i + half]
            out[t, :, i], out[t, :, i + half] = c * a - s * b, s * a + c * b
    return out


def np_attention(cfg, p, x, freq):
    """One sequence ``x [T, D]`` without padding, in loops over heads and time."""
    q, k, v = (
        (x @ p[n]["kernel"] + p[n].get("bias", 0.0)).reshape(len(x), -1, cfg.head_dim)
        for n in "qkv"
    )
    if cfg.qk_norm:
        q, k = np_rms(q, p["q_norm"]["scale"]), np_rms(k, p["k_norm"]["scale"])
    q, k = (np_rotate(y, range(len(x)), freq) for y in (q, k))
    out = np.zeros_like(q)
    for n in range(cfg.heads):
        shared = n // (cfg.heads // cfg.kv_heads)
        for t in range(len(x)):
            score = k[: t + 1, shared] @ q[t, n] / np.sqrt(cfg.head_dim)
            weight = np.exp(score - score.max())
            out[t, n] = (weight / weight.sum()) @ v[: t + 1, shared]
    return out.reshape(len(x), -1) @ p["o"]["kernel"]


def np_logits(cfg, params, tokens):
    """A plain writing of the decoder for one sequence, float64."""
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    freq = np_frequencies(cfg.head_dim, cfg.rope_theta, cfg.rope_scaling)
    x = params["embed"]["embedding"][tokens]
    for layer in range(cfg.layers):
        p = jax.tree.map(lambda a, i=layer: a[i], params["layers"])
        y = np_rms(x, p["attention_norm"]["scale"])
        x = x + np_attention(cfg, p["attention"], y, freq)
        y, m = np_rms(x, p["mlp_norm"]["scale"]), p["mlp"]
        gate = y @ m["gate"]["kernel"]
        up = y @ m["up"]["kernel"]
        x = x + (gate / (1 + np.exp(-gate)) * up) @ m["down"]["kernel"]
    x = np_rms(x, params["final_norm"]["scale"])
    tied = params["embed"]["embedding"].T
    return x @ (tied if cfg.tied else params["lm_head"]["kernel"])


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_match_a_plain_numpy_decoder(name):
    model, params = model_and_params(**VARIANTS[name])
    tokens = random_tokens(2)
    out = logits(model, params, tokens, jnp.ones((2, T), bool))
    assert out.shape == (2, T, CFG.vocab) and out.dtype == jnp.float32
    expected = [np_logits(model.cfg, params, np.asarray(row)) for row in tokens]
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)


def test_a_later_token_changes_no_earlier_logits():
    model, params = model_and_params()
    tokens = jnp.repeat(random_tokens(1), T, axis=0)
    at = jnp.arange(T)
    changed = tokens.at[at, at].set((tokens[at, at] + 1) % CFG.vocab)  # row j: token j
    mask = jnp.ones((T, T), bool)
    before = np.asarray(logits(model, params, tokens, mask))
    after = np.asarray(logits(model, params, changed, mask))
    for j in range(T):
        np.testing.assert_allclose(after[j, :j], before[j, :j], atol=1e-6)
        assert np.all(np.abs(after[j, j:] - before[j, j:]).max(axis=-1) > 1e-4)


def test_content_of_the_padding_does_not_matter():
    model, params = model_and_params()
    mask = np.ones((T, T), bool)
    mask[0, :4] = mask[1, 7:] = mask[2, :3] = mask[2, 9:] = mask[3, 5:8] = False
    tokens = jnp.repeat(random_tokens(1), T, axis=0)
    junk = jnp.where(mask, tokens, (tokens * 7 + 3) % CFG.vocab)
    out, other = (
        np.asarray(logits(model, params, x, jnp.asarray(mask))) for x in (tokens, junk)
    )
    np.testing.assert_allclose(out[mask], other[mask], atol=1e-6)
    assert np.all(np.isfinite(other))


def test_grouped_heads_equal_full_heads_with_repeated_keys_and_values():
    grouped, params = model_and_params(**VARIANTS["grouped heads and scaled rope"])
    cfg = grouped.cfg
    full = Decoder(dataclasses.replace(cfg, kv_heads=cfg.heads))
    attention = dict(params["layers"]["attention"])
    for name in "kv":
        kernel = attention[name]["kernel"]
        heads = kernel.reshape(cfg.layers, cfg.embed, cfg.kv_heads, cfg.head_dim)
        wide = jnp.repeat(heads, cfg.heads // cfg.kv_heads, axis=2)
        attention[name] = {"kernel": wide.reshape(cfg.layers, cfg.embed, -1)}
    wide_params = params | {"layers": params["layers"] | {"attention": attention}}
    tokens, mask = random_tokens(2), jnp.ones((2, T), bool)
    np.testing.assert_allclose(
        logits(full, wide_params, tokens, mask),
        logits(grouped, params, tokens, mask),
        atol=1e-5,
    )


def test_rematerialisation_changes_no_gradient():
    plain, params = model_and_params(layers=2)
    assert plain.cfg.remat == "products"
    kinds = ("none", "full", "dots", "dots_with_no_batch_dims")
    remat = [Decoder(dataclasses.replace(plain.cfg, remat=kind)) for kind in kinds]
    tokens, mask = random_tokens(2), jnp.ones((2, T), bool)

    def loss(model, params):
        hidden = hidden_states(model, params, tokens, mask)
        return jnp.mean(logits_of(model, params, hidden) ** 2)

    all_of = jax.jit(lambda p: [jax.grad(loss, 1)(m, p) for m in (plain, *remat)])
    once, *again = all_of(params)
    for other in again:
        for a, b in zip(*map(jax.tree.leaves, (other, once)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    with pytest.raises(UserError, match=r"model.remat = 'half'; known: .*dots"):
        dataclasses.replace(plain.cfg, remat="half")


def test_bfloat16_compute_with_float32_parameters_gives_float32_logits():
    wide, params = model_and_params()
    narrow = Decoder(dataclasses.replace(CFG, compute_dtype="bfloat16"))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))
    tokens, mask = random_tokens(2), jnp.ones((2, T), bool)
    out = logits(narrow, params, tokens, mask)
    assert out.dtype == jnp.float32 and np.all(np.isfinite(out))
    exact = np.asarray(logits(wide, params, tokens, mask))
    np.testing.assert_allclose(out, exact, atol=0.05 * np.abs(exact).max())


def test_bfloat16_parameters_are_stored_as_such():
    model = Decoder(dataclasses.replace(CFG, param_dtype="bfloat16", tied=False))
    shapes = jax.eval_shape(lambda: init_decoder(model, key=jax.random.key(0)))
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(shapes))


def test_dropout_is_off_without_a_key_and_on_with_one():
    plain, params = model_and_params()
    drop = Decoder(dataclasses.replace(CFG, dropout=0.5))
    tokens, mask = random_tokens(2), jnp.ones((2, T), bool)
    hidden = jax.jit(
        lambda m, key: hidden_states(m, params, tokens, mask, key=key), static_argnums=0
    )
    np.testing.assert_array_equal(hidden(drop, None), hidden(plain, None))
    one, two = (hidden(drop, jax.random.key(seed)) for seed in (1, 2))
    assert not np.allclose(one, hidden(drop, None), atol=1e-3)
    assert not np.allclose(one, two, atol=1e-3)
    np.testing.assert_array_equal(one, hidden(drop, jax.random.key(1)))


def test_every_product_goes_through_the_pluggable_op():
    _, params = model_and_params()
    shapes = []

    def spy(x, kernel, slot=None):
        shapes.append(kernel.shape)
        return jnp.einsum("...d,df->...f", x, kernel)

    tokens, mask = random_tokens(2), jnp.ones((2, T), bool)
    jax.eval_shape(functools.partial(logits, Decoder(CFG, spy)), params, tokens, mask)
    # q and o; k and v; gate and up; down; the tied unembedding
    expected = {(32, 32), (32, 16), (32, 64), (64, 32)}
    assert set(shapes) == expected
    assert (32, CFG.vocab) in shapes


def test_heads_that_cannot_be_grouped_are_refused():
    with pytest.raises(UserError, match=r"heads = 4 must .*kv_heads = 3"):
        dataclasses.replace(CFG, heads=4, kv_heads=3)


def test_an_odd_head_dimension_is_refused():
    with pytest.raises(UserError, match="head_dim = 15 must be even"):
        dataclasses.replace(CFG, head_dim=15)


def test_rms_norm_matches_numpy_and_keeps_the_dtype():
    x = np.random.default_rng(2).normal(size=(2, 3, 8)).astype(np.float32)
    scale = np.linspace(0.5, 2.0, 8).astype(np.float32)

    def apply(y) -> jax.Array:
        out = RMSNorm().apply({"params": {"scale": scale}}, y)
        assert isinstance(out, jax.Array)
        return out

    np.testing.assert_allclose(apply(jnp.asarray(x)), np_rms(x, scale), rtol=1e-5)
    narrow = apply(jnp.asarray(x, jnp.bfloat16))
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        narrow.astype(jnp.float32), np_rms(x, scale), rtol=0.03, atol=0.01
    )


def rotated(x, position, freq):
    x = jnp.asarray(x, jnp.float32).reshape(1, 1, 1, -1)
    return np.asarray(rotate(x, jnp.full((1, 1), position, jnp.int32), freq)).ravel()


def test_rotated_products_depend_only_on_the_difference_of_positions():
    q, k = np.random.default_rng(3).normal(size=(2, 16))
    freq = rope_frequencies(16, 10_000.0, None)

    def product(at_q, at_k):
        return float(rotated(q, at_q, freq) @ rotated(k, at_k, freq))

    for apart in (0, 1, 5, 17):
        first = product(apart, 0)
        for shift in (1, 8, 40):
            assert product(apart + shift, shift) == pytest.approx(first, abs=1e-4)
    assert abs(product(1, 0) - product(5, 0)) > 1e-2
    assert product(0, 0) == pytest.approx(float(q @ k), abs=1e-4)


def test_rotation_keeps_the_norm_and_matches_numpy():
    x = np.random.default_rng(4).normal(size=(5, 3, 8))
    positions = np.array([0, 1, 2, 7, 30])
    freq = rope_frequencies(8, 100.0, None)
    out = rotate(
        jnp.asarray(x[None], jnp.float32), jnp.asarray(positions[None], jnp.int32), freq
    )[0]
    np.testing.assert_allclose(
        out, np_rotate(x, positions, np_frequencies(8, 100.0, None)), atol=1e-5
    )
    np.testing.assert_allclose(
        np.linalg.norm(out, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5
    )


@pytest.mark.parametrize(
    "scaling", [None, {"type": "linear", "factor": 4.0}, LLAMA3], ids=str
)
def test_rope_frequencies_match_plain_numpy(scaling):
    rule = None if scaling is None else as_tuple(scaling)
    out = rope_frequencies(32, 10_000.0, rule)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, np_frequencies(32, 10_000.0, rule), rtol=1e-5)


def test_llama3_scaling_keeps_fast_blends_middle_and_slows_slow_frequencies():
    plain = np_frequencies(32, 10_000.0, None)
    ratio = np.asarray(rope_frequencies(32, 10_000.0, as_tuple(LLAMA3))) / plain
    turns = 64.0 * plain / (2 * np.pi)
    np.testing.assert_allclose(ratio[turns > 4.0], 1.0, rtol=1e-5)
    np.testing.assert_allclose(ratio[turns < 1.0], 1 / 8, rtol=1e-5)
    middle = ratio[(turns > 1.0) & (turns < 4.0)]
    assert middle.size and np.all((middle > 1 / 8) & (middle < 1.0))


def test_an_unknown_rope_scaling_is_refused():
    with pytest.raises(UserError, match="yarn"):
        dataclasses.replace(CFG, rope_scaling=(("factor", 2.0), ("type", "yarn")))
