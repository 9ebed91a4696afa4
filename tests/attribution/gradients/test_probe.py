"""The engines against the gradients of every example, made by ``vmap(grad)``."""

import dataclasses
import functools

import architectures
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.attribution import OwnerBatch
from dareu_jax.attribution.gradients.bilinear import (
    GradientIndex,
    How,
    add_records,
    comparing,
    exact,
    folded_scores,
    in_places,
    owner_cosines,
    owner_scores,
    projected,
    scoring,
    summing,
    trigonometric_projections,
)
from dareu_jax.attribution.gradients.ghost import (
    formed_norms,
    ghost_is_cheaper,
    ghost_norms,
    square_norms,
)
from dareu_jax.attribution.gradients.measures import log_likelihoods, token_weight
from dareu_jax.attribution.gradients.probe import (
    Slot,
    Whole,
    attributed,
    gradients,
    own_layer,
    probe,
    rows_at_once,
)
from dareu_jax.data import TokenBatch
from dareu_jax.models import Decoder, DecoderConfig, init_adapters, init_decoder, join
from dareu_jax.parallel import named_leaves

pytestmark = pytest.mark.slow

PLAIN = DecoderConfig(
    vocab=40, layers=3, embed=32, heads=4, kv_heads=2, head_dim=8, ffn=48
)
CASES = {
    "plain": PLAIN,
    "remat": dataclasses.replace(PLAIN, remat=True),
    "untied, qk norm, bias": dataclasses.replace(
        PLAIN, tied=False, qk_norm=True, qkv_bias=True
    ),
    "window": dataclasses.replace(PLAIN, sliding_window=5),
    "lora": dataclasses.replace(PLAIN, lora_alpha=16.0, remat=True),
    "gemma 3": dataclasses.replace(PLAIN, **architectures.GEMMA3, sliding_window=5),
    "pythia": dataclasses.replace(PLAIN, **architectures.PYTHIA, lora_alpha=16.0),
    "olmo 2": dataclasses.replace(PLAIN, **architectures.OLMO2),
}
SHAPES = [(1, 1), (33, 6), (2, 128)]
EXACT = [*((case, (3, 17)) for case in CASES), *(("plain", shape) for shape in SHAPES)]
OWNERS, P = 4, 5


def made(case):
    """The case's decoder and parameters; adapters are not at their zero start."""
    cfg = CASES[case]
    model, key = Decoder(cfg), jax.random.key(0)
    params = jax.jit(lambda key: init_decoder(model, key=key))(key)
    if cfg.lora_alpha:
        fresh = init_adapters(params, 3, key=key)
        moved = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(key, x.shape), fresh)
        params = join(params, moved)
    return model, params


def texts(rows, length, seed=0):
    """Ragged responses with junk behind them, left-padded prompts."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, length + 1, rows)
    before = rng.integers(1, P + 1, rows)
    return TokenBatch(
        rng.integers(0, 40, (rows, P)).astype(np.int32),
        np.arange(P)[None] >= P - before[:, None],
        rng.integers(0, 40, (rows, length)).astype(np.int32),
        np.arange(length)[None] < lengths[:, None],
        np.arange(rows, dtype=np.int32),
    )


def flat(model, params, batch, reduction="mean"):
    """Every example's gradient as one vector, ``[B, P]`` float64."""
    weight = token_weight(jax.tree.map(jnp.asarray, batch), reduction)
    tree = jax.jit(functools.partial(gradients, model))(params, batch, weight)
    leaves = [np.asarray(g, np.float64) for _, g in named_leaves(tree)]
    return np.concatenate([g.reshape(len(g), -1) for g in leaves], axis=1)


def empty(params, features, seed=0):
    sums = {
        path.replace("/", "."): jnp.zeros(
            (len(leaf), OWNERS, *features.shape(*leaf.shape[1:])), jnp.float32
        )
        for path, leaf in named_leaves(attributed(params))
    }
    return GradientIndex(sums, jnp.zeros(OWNERS, jnp.float32), jnp.uint32(seed))


def built(model, params, features, text, owner, seed=0, reduction="mean"):
    start = empty(params, features, seed)
    batch = OwnerBatch(text, owner)
    return add_records(How(model, features, reduction), params, batch, start)[0]


def scored(model, params, features, index, queries, reduction="mean"):
    score = jax.jit(owner_scores, static_argnums=0)
    return score(How(model, features, reduction), params, index, queries)


def relative(found, wanted):
    return np.abs(np.asarray(found) - wanted).max() / np.abs(wanted).max()


def owners_of(rows):
    """Labels of four owners; the last record is nobody's."""
    owner = np.arange(rows, dtype=np.int32) % OWNERS
    return np.where(np.arange(rows) == rows - 1, -1, owner).astype(np.int32)


def self_influence(model, params, batch, reduction="mean"):
    """|g_b|^2 ``[B]``: grad_dot of every response with itself."""
    rows, weight = len(batch.response), token_weight(batch, reduction)

    def slot(leaf, path):
        return Slot((), jnp.zeros((len(leaf), rows), jnp.float32))

    slots = in_places(params, slot)
    _, each = probe(model, square_norms, params, batch, weight, slots)
    return sum((x.sum(axis=0) for x in jax.tree.leaves(each)), jnp.zeros(rows))


@functools.partial(jax.jit, static_argnums=0)
def engines(how, params, index, weights, queries):
    """Dots, cosines, a linear reward and self-influence, each by its own engine."""
    return (
        owner_scores(how, params, index, queries),
        owner_cosines(how, params, index, queries),
        folded_scores(how, params, index, weights, queries),
        self_influence(how.model, params, queries, how.reduction),
    )


@pytest.mark.parametrize(("case", "shape"), [*EXACT, ("lora", (2, 128))], ids=str)
def test_every_engine_is_exact(case, shape):
    model, params = made(case)
    queries, records = texts(*shape, seed=1), texts(9, 11)
    owner = owners_of(9)
    index = built(model, params, exact(), records, owner)
    how, weights = How(model, exact(), "mean"), jnp.asarray([1.0, -0.5, 0.25, 0.0])
    dots, cosines, reward, norms = engines(how, params, index, weights, queries)
    own, theirs = flat(model, params, queries), flat(model, params, records)
    means = np.stack([theirs[owner == o].mean(axis=0) for o in range(OWNERS)])
    assert dots.dtype == norms.dtype == jnp.float32
    assert dots.shape == (shape[0], OWNERS) and norms.shape == (shape[0],)
    wanted = own @ means.T
    assert relative(dots, wanted) < 5e-6
    assert relative(reward, wanted @ np.asarray(weights)) < 5e-6
    assert relative(norms, np.sum(own**2, axis=1)) < 5e-6
    sizes = np.linalg.norm(own, axis=1)[:, None] * np.linalg.norm(means, axis=1)
    assert relative(cosines, wanted / sizes) < 5e-6
    assert np.abs(cosines).max() <= 1.0 + 1e-6
    np.testing.assert_array_equal(index.counts, [2, 2, 2, 2])


@pytest.mark.parametrize("t", [1, 16, 128])
@pytest.mark.parametrize("b", [1, 33])
def test_ghost_norms_are_those_of_the_gradients(b, t):
    rng = np.random.default_rng(0)
    x, e = (rng.normal(size=(b, t, n)).astype(np.float32) for n in (24, 40))
    wide = (side.astype(np.float64) for side in (x, e))
    wanted = np.sum(np.einsum("btd,btf->bdf", *wide) ** 2, axis=(1, 2))
    assert relative(ghost_norms(x, e), wanted) < 5e-6
    assert relative(formed_norms(x, e), wanted) < 5e-6


def test_a_ghost_norm_is_taken_where_it_costs_less():
    # 2 T^2 (D + F) against 2 T D F + 2 D F multiplications and additions
    chosen = {t: ghost_is_cheaper(t, 32, 48) for t in (1, 16, 20, 21, 128)}
    assert chosen == {1: True, 16: True, 20: True, 21: False, 128: False}
    program = {
        t: str(
            jax.make_jaxpr(square_norms)(jnp.ones((2, t, 32)), jnp.ones((2, t, 48)), ())
        )
        for t in (16, 128)
    }
    assert "f32[2,16,16]" in program[16] and "f32[2,32,48]" not in program[16]
    assert "f32[2,128,128]" not in program[128] and "f32[2,32,48]" in program[128]


def test_gradients_formed_a_few_rows_at_a_time_are_the_same():
    b, t, d, f = 64, 3, 24, 512
    assert rows_at_once(b, d, f) == 8  # of 24
    rng = np.random.default_rng(0)
    x, e, sums, shares = (
        rng.normal(size=size).astype(np.float32)
        for size in ((b, t, d), (b, t, f), (2, OWNERS, d, f), (b, OWNERS))
    )
    held = (), own_layer(Whole(jnp.asarray(sums)), jnp.int32(1))
    grads = np.einsum("btd,btf->bdf", x, e, dtype=np.float64)
    dots = np.einsum("bdf,odf->bo", grads, sums[1])
    norms = np.sum(grads**2, axis=(1, 2))
    assert relative(scoring(exact())(x, e, held), dots) < 5e-6
    found = comparing(exact())(x, e, held)
    assert relative(found[0], dots) < 5e-6 and relative(found[1], norms) < 5e-6
    assert relative(formed_norms(x, e), norms) < 5e-6
    added = summing(exact())(x, e, ((), jnp.asarray(shares)))
    assert relative(added, np.einsum("bo,bdf->odf", shares, grads)) < 5e-6


def times(scale, model, params, batch, weight, slots=None):
    return scale * log_likelihoods(model, params, batch, weight, slots)


def test_cosines_do_not_depend_on_the_scale_of_the_loss():
    model, params = made("plain")
    queries, records = texts(6, 13, seed=1), texts(9, 11)
    owner = owners_of(9)

    def cosines(measure):
        how = How(model, exact(), "mean", measure)
        start, batch = empty(params, exact()), OwnerBatch(records, owner)
        index, _ = add_records(how, params, batch, start)
        found = jax.jit(owner_cosines, static_argnums=0)(how, params, index, queries)
        return np.asarray(found)

    plain = cosines(log_likelihoods)
    for scale in (1e-3, 1e3):
        scaled = cosines(functools.partial(times, scale))
        np.testing.assert_allclose(scaled, plain, atol=2e-6)


def test_reduction_scales_queries_and_records_by_their_lengths():
    model, params = made("plain")
    text = texts(5, 9)
    owner = np.asarray([0, 1, 2, 3, 0], np.int32)
    index = built(model, params, exact(), text, owner, reduction="sum")
    dots = scored(model, params, exact(), index, text, "sum")
    grads = flat(model, params, text, "sum")
    means = np.stack([grads[owner == o].mean(axis=0) for o in range(OWNERS)])
    assert relative(dots, grads @ means.T) < 5e-6
    shorter = grads / text.response_mask.sum(axis=1, keepdims=True)
    assert relative(flat(model, params, text, "mean"), shorter) < 5e-6


def test_adding_batches_is_adding_records():
    model, params = made("plain")
    text, owner = texts(8, 9), owners_of(8)
    whole = built(model, params, exact(), text, owner)
    halves = [jax.tree.map(lambda x, s=s: x[s], text) for s in (slice(4), slice(4, 8))]
    parts = empty(params, exact())
    for half, rows in zip(halves, (owner[:4], owner[4:]), strict=True):
        batch = OwnerBatch(half, rows)
        how = How(model, exact(), "mean")
        parts, metrics = add_records(how, params, batch, parts)
        assert float(metrics["loss"]) > 0.0
    for a, b in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("size", "k"), [(7, 3), (128, 16), (60_001, 4)])
def test_columns_of_a_projection_are_orthogonal(size, k):
    found = np.asarray(
        trigonometric_projections(2, size, k, key=jax.random.key(1)), np.float64
    )
    gram = np.einsum("ldi,ldj->lij", found, found)
    wanted = np.broadcast_to(np.eye(k) * size / k, gram.shape)
    np.testing.assert_allclose(gram, wanted, atol=1e-5 * size / k)


def test_projections_are_right_on_average_and_better_with_more_columns():
    model, params = made("plain")
    text, queries = texts(8, 9), texts(6, 9, seed=1)
    owner = np.arange(8, dtype=np.int32) % OWNERS
    wanted = scored(
        model, params, exact(), built(model, params, exact(), text, owner), queries
    )

    def with_seed(k, seed):
        index = built(model, params, projected(k), text, owner, seed)
        return np.asarray(scored(model, params, projected(k), index, queries))

    some = {k: np.stack([with_seed(k, s) for s in range(12)]) for k in (4, 16)}
    spread = {k: np.abs(x - np.asarray(wanted)).mean() for k, x in some.items()}
    assert spread[16] < 0.6 * spread[4]
    error = some[16].mean(axis=0) - np.asarray(wanted)
    assert np.abs(error / (some[16].std(axis=0) / np.sqrt(12))).max() < 4.5
    np.testing.assert_array_equal(with_seed(4, 3), some[4][3])  # the seed is all
    whole = scored(  # no side is longer than k: nothing is projected
        model,
        params,
        projected(64),
        built(model, params, projected(64), text, owner),
        queries,
    )
    assert relative(whole, np.asarray(wanted)) < 5e-6


def test_a_query_scores_itself_above_zero_and_alike_both_ways():
    model, params = made("plain")
    text = texts(OWNERS, 9)
    index = built(model, params, exact(), text, np.arange(OWNERS, dtype=np.int32))
    dots = np.asarray(scored(model, params, exact(), index, text))
    norms = np.linalg.norm(flat(model, params, text), axis=1)
    np.testing.assert_allclose(dots, dots.T, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.diag(dots), norms**2, rtol=1e-4)
    assert np.linalg.eigvalsh((dots + dots.T) / 2).min() > -1e-5
