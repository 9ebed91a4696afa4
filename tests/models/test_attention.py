"""Attention in blocks and by fused kernels against all scores at once."""

import dataclasses
import types
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.config import ModelConfig
from dareu_jax.errors import UserError
from dareu_jax.models import (
    Decoder,
    DecoderConfig,
    abstract_params,
    decoder_config,
    hidden_states,
    init_decoder,
    with_all_derivatives,
)
from dareu_jax.models.attention import Scores, in_blocks, in_window, visible, whole
from dareu_jax.models.fused_attention import (
    FUSED,
    IMPLEMENTATIONS,
    Rule,
    attention,
    by_cudnn,
    by_splash,
    fused_for,
    queries_at_once,
)
from dareu_jax.parallel import make_mesh, put_batch

B, T, N, K, H = 4, 22, 4, 2, 8
LEFT, RIGHT = np.array([0, 5, 3, 0]), np.array([T, T, 15, 9])
MASK = (np.arange(T) >= LEFT[:, None]) & (np.arange(T) < RIGHT[:, None])
TREE = np.array([22, 22, 6, 4, 6, 6, 22, 15, 9, 15, 15, 11, 15, 15, 15, *[22] * 7])
CFG = DecoderConfig(
    vocab=32, layers=2, embed=16, heads=4, kv_heads=2, head_dim=8, ffn=24
)


@pytest.fixture
def short_blocks(monkeypatch):
    """Texts of 16 tokens are long ones, in blocks of at most 8."""
    monkeypatch.setattr("dareu_jax.models.attention.LONG", 16)
    monkeypatch.setattr("dareu_jax.models.attention.BLOCK", 8)


@pytest.fixture
def on_tpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")


@pytest.fixture
def on_gpu(monkeypatch):
    device = types.SimpleNamespace(compute_capability="9.0")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    return device


def arrays(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


SEEN = jnp.asarray(MASK)
QKV = arrays((B, T, N, H), (B, K, T, H), (B, K, T, H))


def with_derivatives(attended):
    """Outputs at real tokens, gradients, and a forward-mode derivative of them."""

    def total(q, k, v):
        out = jnp.where(SEEN[:, :, None, None], attended(q, k, v), 0.0)
        return jnp.sum(jnp.sin(out)), out

    return jax.grad(total, (0, 1, 2), has_aux=True)


def close(found, wanted, atol=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=atol), found, wanted
    )


def rule(scores=None, window=None, **fields):
    fields = {"name": "auto", "head_dim": H, "dtype": "float32"} | fields
    return Rule(scores=scores or Scores(H), window=window, **fields)


def test_a_token_sees_keys_that_count_and_are_not_later():
    tree = np.array([[4, 2, 4, 0]])  # the second key is seen by itself alone
    cases = {
        "mask": (np.array([[False, True, True, False]]), 4, 0),
        "tree": (tree.astype(np.int32), 4, 0),
        "cache": (np.array([[True, False, True, True]]), 2, 2),
    }
    ends = {"mask": [0, 99, 99, 0], "tree": [4, 2, 4, 0], "cache": [99, 0, 99, 99]}
    for name, (seen, tokens, first) in cases.items():
        wanted = [
            [s <= first + t < ends[name][s] for s in range(4)] for t in range(tokens)
        ]
        assert visible(jnp.asarray(seen), tokens, first).tolist() == [wanted], name


def test_a_window_hides_keys_that_are_too_far_back():
    seen = in_window(jnp.ones((1, 5), bool), 2)
    wanted = [[s <= t < s + 2 for s in range(5)] for t in range(5)]
    assert visible(seen, 5).tolist() == [wanted]


CASES = {
    "grouped heads, padding": (jnp.asarray(MASK), Scores(H)),
    "window, softcap, score_dim": (in_window(jnp.asarray(MASK), 5), Scores(5, 2.0)),
    "prefix tree": (jnp.asarray(np.where(MASK, TREE, 0).astype(np.int32)), Scores(H)),
}


@pytest.mark.parametrize("name", CASES)
def test_blocks_give_what_all_scores_at_once_give(name, short_blocks):
    """Values, gradients, per-example gradients, and forward over reverse."""
    seen, scores = CASES[name]
    moved = arrays(*(x.shape for x in QKV), seed=1)

    def every(attended):
        def of_one(q, k, v, seen):
            return jnp.sum(jnp.sin(attended(q[None], k[None], v[None], seen[None])))

        def values(q, k, v):
            return attended(q, k, v, seen)

        grads = with_derivatives(values)
        each = jax.vmap(jax.grad(of_one))(*QKV, seen)
        curved = jax.jvp(lambda *x: grads(*x)[0], tuple(QKV), tuple(moved))[1]
        real = MASK[:, :, None, None]
        return (grads(*QKV), jnp.where(real, each, 0.0)), curved

    def blocks(q, k, v, seen):
        return in_blocks(q, k, v, seen, scores, 0)

    def at_once(q, k, v, seen):
        return whole(q, k, v, seen, scores, 0)

    found, wanted = jax.jit(lambda: (every(blocks), every(at_once)))()
    close(found[0], wanted[0])
    close(found[1], wanted[1], atol=1e-4)


def test_blocks_over_a_cache_start_at_their_slot(short_blocks):
    q, k, v = arrays((B, 17, N, H), (B, K, 30, H), (B, K, 30, H))
    seen = jnp.asarray(np.arange(30) >= LEFT[:, None])
    given = (q, k, v, seen, Scores(H))
    found, wanted = jax.jit(lambda at: [f(*given, at) for f in (in_blocks, whole)])(13)
    close(found, wanted)


def test_blocks_in_bfloat16_are_as_near_as_all_scores_at_once(short_blocks):
    half = [x.astype(jnp.bfloat16) for x in QKV]
    given = (jnp.asarray(MASK), Scores(H), 0)
    exact, found, plain = (
        np.asarray(x, np.float32)[MASK]
        for x in (whole(*QKV, *given), in_blocks(*half, *given), whole(*half, *given))
    )
    assert np.abs(found - exact).max() <= 1.1 * np.abs(plain - exact).max() < 0.05


@pytest.mark.parametrize(
    "name", ["cudnn", "cudnn, window", "splash", "splash, window, softcap"]
)
def test_a_fused_kernel_is_given_what_attention_means(name):
    """Splash in Pallas' interpreter; cuDNN's call with XLA in its place."""
    how = rule(
        Scores(5, 2.0 if "softcap" in name else None), 6 if "window" in name else None
    )
    seen = SEEN.at[0, 9:12].set(False) if name == "cudnn" else SEEN

    def fused(q, k, v):
        if "splash" in name:
            return by_splash(q, k, v, seen, how, interpret=True)
        return by_cudnn(q, k, v, seen, how, by="xla")

    def plain(q, k, v):
        return attention(q, k, v, seen, how, 0)

    def both(*x):
        return with_derivatives(fused)(*x), with_derivatives(plain)(*x)

    with jax.transfer_guard("disallow"):
        found, wanted = jax.jit(both)(*QKV)
    if name == "cudnn":  # at the padding inside the first text nothing is promised
        found, wanted = (x[1][1:] for x in (found, wanted))
    close(found, wanted)


def test_splash_runs_on_each_device_with_its_own_rows_and_heads():
    mesh, how, mask = make_mesh(2, 2, 2), rule(), jnp.asarray(MASK)
    wanted = jax.jit(with_derivatives(lambda *x: attention(*x, mask, how, 0)))(*QKV)

    def loss(*x):
        return with_derivatives(lambda *y: by_splash(*y, mask, how, interpret=True))(*x)

    with jax.set_mesh(mesh):
        close(jax.jit(loss)(*put_batch(tuple(QKV), mesh)), wanted)


def test_splash_is_a_program_for_a_tpu():
    shape, how = jax.ShapeDtypeStruct, rule(head_dim=64, dtype="bfloat16", window=100)
    half = jnp.bfloat16
    q, k = shape((2, 300, 4, 64), half), shape((2, 2, 300, 64), half)
    loss = jax.grad(
        lambda q, k, v, seen: jnp.sum(
            by_splash(q, k, v, seen, how).astype(jnp.float32)
        ),
        (0, 1, 2),
    )
    traced = jax.jit(loss).trace(q, k, k, shape((2, 300), jnp.bool_))
    assert "tpu_custom_call" in traced.lower(lowering_platforms=("tpu",)).as_text()


def test_auto_takes_the_kernel_of_a_tpu_for_long_texts(on_tpu):
    able = rule(head_dim=64)
    assert fused_for(able, 512) is FUSED["splash"]
    assert fused_for(able, 100) is None
    assert fused_for(able._replace(windows_differ=True), 512) is None
    assert fused_for(able._replace(name="xla"), 512) is None
    assert queries_at_once(able, 512) == 0


def test_auto_takes_cudnn_where_it_can_do_what_is_asked(on_gpu):
    able = rule(head_dim=64, dtype="bfloat16")
    assert fused_for(able, 512) is FUSED["cudnn"]
    assert fused_for(able._replace(dtype="float32"), 512) is None
    assert fused_for(able._replace(scores=Scores(64, 30.0)), 512) is None
    on_gpu.compute_capability = "7.5"
    assert fused_for(able, 512) is None
    on_gpu.compute_capability = "gfx942"
    assert fused_for(able, 512) is None


def test_a_cpu_has_no_kernel_whoever_asks():
    for name in ("auto", *FUSED):
        how = rule(name=name, head_dim=64, dtype="bfloat16")
        assert fused_for(how, 512) is None
        assert queries_at_once(how, 2048) == 128
    assert queries_at_once(rule(name="xla"), 2048) == 2048


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"attention": "flash"}, "model.attention = 'flash'; known: auto, xla"),
        ({"attention": "cudnn"}, "cudnn does not compute in float32: set"),
        (
            {"attention": "cudnn", "score_softcap": 50.0},
            "cudnn has no softcap of scores; take auto, xla or chunked",
        ),
        (
            {"attention": "splash", "sliding_window": 4, "windowed": (True, False)},
            "splash has one window for all layers",
        ),
        ({"attention": "splash"}, "splash has no head_dim = 8: multiples of 64"),
    ],
)
def test_what_a_decoder_asks_and_a_kernel_lacks_is_said(fields, said):
    with pytest.raises(UserError, match=said):
        dataclasses.replace(CFG, **fields)


def test_the_configuration_knows_every_implementation():
    known = typing.get_args(ModelConfig.model_fields["attention"].annotation)[0]
    assert typing.get_args(known) == IMPLEMENTATIONS
    assert decoder_config(ModelConfig(attention="xla"), 64).attention == "xla"


def made(**changes):
    model = Decoder(dataclasses.replace(CFG, **changes))
    return model, jax.jit(lambda key: init_decoder(model, key=key))(jax.random.key(0))


def text(rows, tokens):
    ids = np.random.default_rng(2).integers(1, 32, (rows, tokens)).astype(np.int32)
    return ids, np.arange(tokens) >= np.arange(rows)[:, None]


def test_a_decoder_on_eight_devices_gives_what_one_gives_at_once(short_blocks):
    """With windows in some layers, softcap and rematerialisation."""
    own = {"sliding_window": 6, "windowed": (True, False), "score_softcap": 3.0}
    model, params = made(remat=True, **own)
    plain = Decoder(dataclasses.replace(model.cfg, remat=False, attention="xla"))

    def loss(model, params, ids, mask):
        states = hidden_states(model, params, ids, mask)
        return jnp.sum(jnp.where(mask[:, :, None], jnp.sin(states), 0.0))

    step = jax.jit(jax.value_and_grad(loss, 1), static_argnums=0)
    wanted, mesh = step(plain, params, *text(4, 40)), make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        found = step(model, params, *put_batch(text(4, 40), mesh))
    close(found, wanted, atol=1e-4)


def test_forward_mode_takes_an_attention_that_has_it(on_tpu, monkeypatch):
    monkeypatch.setattr("dareu_jax.models.fused_attention.SHORT", 4)
    model = Decoder(dataclasses.replace(CFG, head_dim=64, remat="none"))
    params, given = abstract_params(model.cfg), text(2, 8)

    def moved(model, params):
        ids, mask = map(jnp.asarray, given)
        states = lambda p: hidden_states(model, p, ids, mask)  # noqa: E731
        return jax.jvp(states, (params,), (params,))[1]

    def lowered(model):
        program = jax.jit(lambda p: moved(model, p)).trace(params)
        return program.lower(lowering_platforms=("tpu",))

    lowered(with_all_derivatives(model))
    with pytest.raises((TypeError, NotImplementedError), match=r"forward-mode|lin"):
        lowered(model)


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_memory_of_a_gradient_grows_with_the_length_of_a_text():
    """Of a whole decoder, in its compiled program; all scores at once grow by T^2."""

    def needed(attention, tokens):
        model = Decoder(dataclasses.replace(CFG, attention=attention))
        ids = jax.ShapeDtypeStruct((2, tokens), jnp.int32)
        mask = jax.ShapeDtypeStruct((2, tokens), jnp.bool_)
        loss = jax.grad(lambda p, *x: jnp.sum(hidden_states(model, p, *x)))
        program = jax.jit(loss).lower(abstract_params(model.cfg), ids, mask).compile()
        return program.memory_analysis().temp_size_in_bytes

    auto = [needed("auto", tokens) for tokens in (512, 1024, 2048)]
    assert auto[1] <= 2.2 * auto[0] and auto[2] <= 2.2 * auto[1]
    assert needed("xla", 1024) > 4 * auto[1]
