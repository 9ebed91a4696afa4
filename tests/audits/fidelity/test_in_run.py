"""Shares of a training step against what the step does to the likelihood."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.attribution import OwnerBatch
from dareu_jax.attribution.gradients.bilinear import How, exact
from dareu_jax.attribution.gradients.probe import attributed
from dareu_jax.audits.fidelity.in_run import step_shares
from dareu_jax.data import TokenBatch, take
from dareu_jax.evaluation.run_suite import mean_logp
from dareu_jax.models import Decoder, DecoderConfig, init_decoder, response_logps

pytestmark = pytest.mark.slow

RATE = np.float32(0.002)
OWNERS = 3


@pytest.fixture(scope="module")
def model():
    return Decoder(
        DecoderConfig(
            vocab=40, layers=2, embed=16, heads=2, kv_heads=2, head_dim=8, ffn=24
        )
    )


@pytest.fixture(scope="module")
def params(model):
    return jax.jit(lambda key: init_decoder(model, key=key))(jax.random.key(0))


@pytest.fixture(scope="module")
def texts():
    """Eight records to train on, eight others, eight to ask about; all ragged."""
    rng = np.random.default_rng(0)
    before, behind = rng.integers(1, 5, 24), rng.integers(1, 9, 24)
    whole = TokenBatch(
        rng.integers(0, 40, (24, 4)).astype(np.int32),
        np.arange(4)[None] >= 4 - before[:, None],
        rng.integers(0, 40, (24, 8)).astype(np.int32),
        np.arange(8)[None] < behind[:, None],
        np.arange(24, dtype=np.int32),
    )
    return [take(whole, np.arange(i, 24, 3)) for i in range(3)]


@pytest.fixture(scope="module")
def queries(texts):
    return take(texts[2], np.arange(4))


@pytest.fixture(scope="module")
def how(model):
    return How(model, exact(), "mean")


LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 0], np.int32)


@pytest.fixture(scope="module")
def shares(how, params, texts, queries):
    batch = OwnerBatch(texts[0], LABELS)
    return np.asarray(step_shares(how, OWNERS, params, batch, queries, RATE))


@pytest.fixture(scope="module")
def descended(model):
    """``(params, batch, rate) -> params``: gradient descent on the mean over tokens."""

    @jax.jit
    def step(params, batch, rate):
        def loss(params):
            tokens = jnp.sum(batch.response_mask.astype(jnp.float32))
            return -jnp.sum(response_logps(model, params, batch)) / tokens

        grads = jax.grad(loss)(params)
        moved = {path for path, _ in leaves(attributed(params))}

        def move(path, leaf, grad):
            return leaf - rate * grad if path in moved else leaf

        return jax.tree_util.tree_map_with_path(move, params, grads)

    return step


def leaves(tree):
    return jax.tree_util.tree_leaves_with_path(tree)


def test_shares_of_a_step_sum_to_what_it_does(
    shares, model, params, texts, queries, descended
):
    there, back = (
        np.asarray(mean_logp(model, descended(params, texts[0], rate), queries))
        for rate in (RATE, -RATE)
    )
    change = (there - back) / 2
    gap = np.abs(shares.sum(axis=1) - change).max()
    assert gap < 2e-3 * np.abs(change).max()


def test_shares_of_several_steps_predict_what_training_does(
    how, model, params, texts, queries, descended
):
    total, now = np.zeros((4, OWNERS), np.float32), params
    for step in range(6):
        text = texts[step % 2]
        batch = OwnerBatch(text, LABELS)
        total += np.asarray(step_shares(how, OWNERS, now, batch, queries, RATE))
        now = descended(now, text, RATE)
    change = np.asarray(mean_logp(model, now, queries)) - np.asarray(
        mean_logp(model, params, queries)
    )
    gap = np.abs(total.sum(axis=1) - change).max()
    assert gap < 0.02 * np.abs(change).max()


def test_an_owners_share_is_the_sum_of_those_of_their_records(
    shares, how, params, texts, queries
):
    for owner in range(OWNERS):
        alone = np.where(owner == LABELS, np.arange(8) % OWNERS, -1).astype(np.int32)
        batch = OwnerBatch(texts[0], alone)
        split = step_shares(how, OWNERS, params, batch, queries, RATE)
        np.testing.assert_allclose(
            np.asarray(split).sum(axis=1), shares[:, owner], rtol=1e-4, atol=1e-7
        )


def test_nobodys_records_take_nothing_from_what_owners_get(
    shares, how, params, texts, queries
):
    """They count among the tokens of the batch either way."""
    labels = np.where(LABELS == 2, -1, LABELS).astype(np.int32)
    batch = OwnerBatch(texts[0], labels)
    found = np.asarray(step_shares(how, OWNERS, params, batch, queries, RATE))
    np.testing.assert_allclose(found[:, :2], shares[:, :2], rtol=1e-5, atol=1e-8)
    assert (found[:, 2] == 0.0).all()


def test_shares_are_proportional_to_the_rate(shares, how, params, texts, queries):
    batch = OwnerBatch(texts[0], LABELS)
    double, nothing = (
        np.asarray(step_shares(how, OWNERS, params, batch, queries, rate))
        for rate in (np.float32(2.0) * RATE, np.float32(0.0))
    )
    np.testing.assert_allclose(double, 2.0 * shares, rtol=1e-6)
    assert (nothing == 0.0).all()
