"""Choosing among a vocabulary: in blocks as at once, and without sorting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import NamedSharding, PartitionSpec
from scipy.stats import chisquare

from dareu_jax.models.next_token import best_token, drawn_token, truncated
from dareu_jax.parallel import make_mesh

best, drawn = jax.jit(best_token), jax.jit(drawn_token)
cut = jax.jit(truncated, static_argnames=("top_k", "top_p"))


def keys_of(rows, seed=0):
    return jax.random.split(jax.random.key(seed), rows)


@pytest.mark.parametrize("vocab", [1, 64, 128, 300, 1024])
def test_the_best_token_is_the_first_maximum(vocab):
    rng = np.random.default_rng(vocab)
    tied = rng.integers(0, 4, (32, vocab)).astype(np.float32)
    tied[0], tied[1], tied[2, ::2] = -np.inf, 0.0, np.nan
    tied[3], tied[3, -1] = -np.inf, -1e30
    found = best(tied)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, jnp.argmax(tied, axis=-1))


def test_tokens_are_drawn_with_their_probabilities():
    rows, vocab = 40_000, 300  # two blocks and a part of one
    logits = np.random.default_rng(0).normal(0, 1.5, vocab).astype(np.float32)
    logits[[7, 128, 299]] = -np.inf
    logits[200:210] = logits[0] = 3.0
    tokens, _ = drawn(jnp.tile(logits, (rows, 1)), keys=keys_of(rows))
    assert tokens.dtype == jnp.int32
    expected = np.exp(logits.astype(np.float64))
    expected *= rows / expected.sum()
    counts = np.bincount(tokens, minlength=vocab)
    assert len(counts) == vocab and counts[expected == 0].sum() == 0
    often = expected > 5
    counts = np.append(counts[often], counts[~often].sum())
    expected = np.append(expected[often], expected[~often].sum())
    assert chisquare(counts, expected).pvalue > 1e-3


def test_log_probabilities_are_those_of_log_softmax():
    rng = np.random.default_rng(1)
    logits = rng.normal(0, [[1.0], [3.0], [10.0], [0.0]], (4, 1000)).astype(np.float32)
    logits = jnp.asarray(np.tile(logits, (50, 1)))
    tokens, logps = drawn(logits, keys=keys_of(200))
    wanted = jax.nn.log_softmax(logits, axis=-1)[jnp.arange(200), tokens]
    assert logps.dtype == jnp.float32
    np.testing.assert_allclose(logps, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shift", [-1e30, -1e4, 0.0, 1e4, 1e30])
def test_a_certain_token_is_drawn_however_large_the_logits(shift):
    logits = np.full((50, 400), -np.inf, np.float32)
    places = np.arange(50) * 7
    logits[np.arange(50), places] = shift
    tokens, logps = drawn(logits, keys=keys_of(50))
    np.testing.assert_array_equal(tokens, places)
    np.testing.assert_array_equal(logps, np.zeros(50))


def test_tokens_of_no_mass_are_never_drawn():
    logits = np.full((20_000, 1024), -60.0, np.float32)  # p < 1e-23 all together
    logits[:, [300, 301, 900]] = 0.0
    tokens, _ = drawn(logits, keys=keys_of(20_000))
    assert set(np.asarray(tokens).tolist()) == {300, 301, 900}


def test_a_row_draws_by_its_own_key_alone():
    logits = jax.random.normal(jax.random.key(1), (6, 500))
    whole, logps = drawn(logits, keys=keys_of(6))
    order = np.array([4, 1, 5])
    some, same = drawn(logits[order], keys=keys_of(6)[order])
    np.testing.assert_array_equal(some, whole[order])
    np.testing.assert_allclose(same, logps[order], atol=1e-6)


@pytest.mark.parametrize("vocab", [1024, 520])  # whole blocks a device, and not
def test_a_vocabulary_on_several_devices_gives_the_same_tokens(vocab):
    logits = jax.random.normal(jax.random.key(2), (4, vocab))
    mesh = make_mesh(1, 1, 8)
    there = jax.device_put(logits, NamedSharding(mesh, PartitionSpec(None, "tensor")))
    np.testing.assert_array_equal(best(there), best(logits))
    one, many = (drawn(x, keys=keys_of(4)) for x in (logits, there))
    np.testing.assert_array_equal(many[0], one[0])
    np.testing.assert_allclose(many[1], one[1], atol=1e-6)
    one, many = (cut(x, top_k=40, top_p=0.7) for x in (logits, there))
    np.testing.assert_array_equal(many, one)


def logits_with(probs):
    return jnp.log(jnp.asarray(probs, jnp.float32))[None] + 2.5  # any shift


def probs_of(logits, *, top_k=0, top_p=1.0):
    return np.asarray(jax.nn.softmax(cut(logits, top_k=top_k, top_p=top_p)))[0]


FOUR = [0.15, 0.5, 0.05, 0.3]


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.0, [1]), (0.4, [1]), (0.7, [1, 3]), (0.9, [0, 1, 3]), (1.0, [0, 1, 2, 3])],
)
def test_top_p_keeps_the_smallest_set_that_reaches_it_and_renormalises(top_p, kept):
    wanted = np.zeros(4)
    wanted[kept] = np.array(FOUR)[kept] / np.array(FOUR)[kept].sum()
    found = probs_of(logits_with(FOUR), top_p=top_p)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("top_k", "kept"), [(0, [0, 1, 2, 3]), (1, [1]), (2, [1, 3]), (9, [0, 1, 2, 3])]
)
def test_top_k_keeps_as_many_and_renormalises(top_k, kept):
    wanted = np.zeros(4)
    wanted[kept] = np.array(FOUR)[kept] / np.array(FOUR)[kept].sum()
    found = probs_of(logits_with(FOUR), top_k=top_k)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_top_p_is_reached_within_the_top_k():
    # of .5 and .3 alone, .5 is .625 and reaches .6
    found = probs_of(logits_with(FOUR), top_k=2, top_p=0.6)
    np.testing.assert_allclose(found, [0, 1, 0, 0], atol=1e-6)


def test_of_equal_tokens_the_first_stay():
    zeros = jnp.zeros((1, 4))
    for found in (probs_of(zeros, top_p=0.5), probs_of(zeros, top_k=2)):
        np.testing.assert_allclose(found, [0.5, 0.5, 0, 0], atol=1e-6)
    signs = jnp.asarray([[-1.0, -0.0, 0.0, -1.0]])
    np.testing.assert_allclose(probs_of(signs, top_k=1), [0, 1, 0, 0])


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0, 40.0])
def test_what_stays_is_what_sorting_would_keep(scale):
    rng = np.random.default_rng(3)
    logits = np.round(rng.normal(0, scale, (16, 300)), 1).astype(np.float32)
    logits[:, ::5] = -np.inf
    order = np.argsort(-logits, axis=-1, kind="stable")
    probs = np.asarray(jax.nn.softmax(logits, axis=-1), np.float64)
    ordered = np.take_along_axis(probs, order, axis=-1)
    before = np.cumsum(ordered, axis=-1) - ordered
    kept = np.isfinite(cut(logits, top_k=0, top_p=0.8003))
    for row in range(16):
        wanted = order[row][before[row] < 0.8003]
        np.testing.assert_array_equal(np.flatnonzero(kept[row]), np.sort(wanted))
    kept = np.isfinite(cut(logits, top_k=17, top_p=1.0))
    for row in range(16):
        np.testing.assert_array_equal(
            np.flatnonzero(kept[row]), np.sort(order[row][:17])
        )


def test_nothing_is_sorted():
    shape = jax.ShapeDtypeStruct((2, 300), jnp.float32)
    traced = str(jax.make_jaxpr(lambda x: truncated(x, top_k=9, top_p=0.5))(shape))
    assert "sort" not in traced and "cumsum" not in traced


def test_a_draw_takes_few_random_numbers():
    shape = jax.ShapeDtypeStruct((1, 16_384), jnp.float32)
    keys = jax.eval_shape(lambda: keys_of(1))
    traced = jax.make_jaxpr(lambda x, keys: drawn_token(x, keys=keys))(shape, keys)
    counts = [
        int(np.prod(equation.outvars[0].aval.shape))
        for equation in equations(traced.jaxpr)
        if equation.primitive.name == "random_bits"
    ]
    assert 0 < sum(counts) <= 16_384 // 128 + 128


def equations(jaxpr):
    """Yields every equation of a program, those inside others too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)
