"""log p, argmax hits, mean and spread of log p per token, against NumPy."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import sizes_in

from dareu_jax.data import TokenBatch
from dareu_jax.data.batches import over_records
from dareu_jax.evaluation.metrics.token_stats import (
    TokenStats,
    spread,
    stats_of,
    token_stats,
)
from dareu_jax.models import Decoder, abstract_params, scoring
from dareu_jax.parallel import make_mesh, on_host, put_batch, shard

MESHES = {"data": (8, 1, 1), "all": (2, 2, 2)}


def by_numpy(told) -> TokenStats:
    logps, mask = told.logps, told.batch.response_mask
    p = np.exp(logps)
    mean = (p * logps).sum(-1)
    std = np.sqrt((p * logps**2).sum(-1) - mean**2)
    hits = (logps.argmax(-1) == told.batch.response).astype(float)
    return TokenStats(*(np.where(mask, x, 0.0) for x in (told.picked, hits, mean, std)))


def assert_near(found, wanted):
    for name, a, b in zip(TokenStats._fields, found, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def stats(told):
    return token_stats(told.model, told.params, told.batch)


def test_against_numpy(told, stats):
    assert all(x.dtype == jnp.float32 and x.shape == (8, 7) for x in stats)
    assert_near(stats, by_numpy(told))
    hits = np.asarray(stats.hits)[told.batch.response_mask]
    assert 0.2 < hits.mean() < 0.8  # both kinds are there


def test_the_end_of_text_counts(told, stats):
    last = told.batch.response_mask.sum(axis=1) - 1
    ends = np.asarray(stats.logps)[np.arange(8), last]
    np.testing.assert_allclose(
        ends, told.logps[np.arange(8), last, 2], atol=1e-5
    )  # 2 is the end of text
    assert (ends < 0.0).all()


def test_nothing_is_said_outside_the_mask(told, stats):
    for values in stats:
        assert (np.asarray(values)[~told.batch.response_mask] == 0.0).all()


def test_padding_changes_nothing(told, stats, pad):
    found = token_stats(told.model, told.params, pad(told.batch, left=5, right=4))
    assert_near([x[:, :7] for x in found], stats)
    assert all((np.asarray(x)[:, 7:] == 0.0).all() for x in found)


@pytest.mark.parametrize("size", [1, 3])
def test_batch_sizes_change_nothing(told, stats, size):
    score = functools.partial(token_stats, told.model, told.params)
    assert_near(over_records(told.batch, size, lambda batch: batch, score), stats)


@pytest.mark.parametrize("name", MESHES)
def test_eight_devices_say_the_same(told, stats, name):
    mesh = make_mesh(*MESHES[name])
    with jax.set_mesh(mesh):
        batch = put_batch(told.batch, mesh)
        found = token_stats(told.model, shard(told.params, mesh=mesh), batch)
    assert_near(on_host(found), stats)


def test_two_positions_at_a_time_say_the_same(told, stats, monkeypatch):
    monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", 8 * 64 * 2)
    anew = jax.jit(functools.partial(token_stats.__wrapped__, told.model))
    assert_near(anew(told.params, told.batch), stats)


def test_a_large_vocabulary_has_never_the_logits_of_a_whole_batch(told):
    rows, vocab, positions = 8, 151_936, 256
    model = Decoder(dataclasses.replace(told.model.cfg, vocab=vocab))
    shape = jax.ShapeDtypeStruct
    kinds = (jnp.int32, bool)
    sides = [shape((rows, n), kind) for n in (16, positions) for kind in kinds]
    batch = TokenBatch(*sides, shape((rows,), jnp.int32))
    params = abstract_params(model.cfg)
    program = jax.make_jaxpr(token_stats, static_argnums=0)(model, params, batch)
    largest = max(sizes_in(program.jaxpr))
    assert vocab * rows < largest <= scoring.LOGITS_AT_ONCE < rows * positions * vocab


def test_spread_by_hand():
    """p = 1/2, 1/4, 1/4: mu = -1.5 log 2, sigma^2 = 2.5 log^2 2 - 2.25 log^2 2."""
    mean, std = spread(jnp.log(jnp.asarray([[[0.5, 0.25, 0.25]]])))
    assert float(mean[0, 0]) == pytest.approx(-1.5 * math.log(2.0))
    assert float(std[0, 0]) == pytest.approx(0.5 * math.log(2.0))


def test_flat_and_certain_logits_have_no_spread():
    certain = jnp.asarray([[[0.0, -jnp.inf, -jnp.inf, -jnp.inf], [0.0] * 4]])
    mean, std = spread(certain)
    np.testing.assert_allclose(mean, [[0.0, -math.log(4.0)]], atol=1e-6)
    np.testing.assert_allclose(std, [[0.0, 0.0]], atol=1e-6)


def test_of_equal_logits_the_first_is_the_hit():
    tokens = jnp.asarray([[0, 1]], jnp.int32)
    hits = stats_of(jnp.asarray([[[3.0, 3.0, 1.0]] * 2]), tokens).hits
    assert hits.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_broken_logits_are_nan_in_all_four_and_there_only(bad):
    logits = jnp.asarray([[[0.0, bad, 1.0], [0.0, 2.0, 1.0]]])
    found = stats_of(logits, jnp.asarray([[1, 1]], jnp.int32))
    for values in found:
        assert np.isnan(values[0, 0]) and np.isfinite(values[0, 1])


def test_a_broken_model_hits_nothing_and_misses_nothing(told, broken):
    found = token_stats(told.model, broken, told.batch)
    for values in found:
        assert np.isnan(np.asarray(values)[told.batch.response_mask]).all()
