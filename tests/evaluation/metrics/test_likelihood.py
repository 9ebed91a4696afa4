"""Perplexity by hand and by NumPy."""

import math

import numpy as np
import pytest

from dareu_jax.errors import UserError
from dareu_jax.evaluation.metrics.likelihood import perplexity
from dareu_jax.evaluation.metrics.token_stats import token_stats


def by_numpy(told, batch):
    logits = told.logits(batch).astype(np.float64)
    logps = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    said = np.take_along_axis(logps, batch.response[..., None], -1)[..., 0]
    return [-row[keep].mean() for row, keep in zip(said, batch.response_mask)]


def test_perplexity_by_hand():
    """Means 1 and 3 nats; of all three tokens together 5/3, and not 2."""
    logps = np.array([[-0.5, -1.5], [-3.0, math.nan]])
    found = perplexity(logps, np.array([[True, True], [True, False]]))
    assert found.total == pytest.approx(math.exp(5.0 / 3.0))
    assert found.rows.tolist() == pytest.approx([math.e, math.exp(3.0)])


def test_a_certain_model_has_perplexity_one_and_a_flat_one_the_vocabulary():
    mask = np.ones((3, 4), bool)
    assert perplexity(np.zeros((3, 4)), mask).total == 1.0
    flat = perplexity(np.full((3, 4), -math.log(64.0)), mask)
    assert flat.total == pytest.approx(64.0)
    assert flat.rows.tolist() == pytest.approx([64.0] * 3)


def test_perplexity_against_numpy(told):
    stats = token_stats(told.model, told.params, told.batch)
    mask = told.batch.response_mask
    found = perplexity(np.asarray(stats.logps), mask)
    rows = [np.exp(-row[keep].mean()) for row, keep in zip(told.picked, mask)]
    np.testing.assert_allclose(found.rows, rows, rtol=1e-5)
    assert found.total == pytest.approx(np.exp(-told.picked[mask].mean()), rel=1e-5)


def test_no_perplexity_of_a_broken_model_or_of_nothing(told, broken):
    mask = told.batch.response_mask
    stats = token_stats(told.model, broken, told.batch)
    with pytest.raises(UserError, match=r"perplexity: nan at index \(0, 0\)"):
        perplexity(np.asarray(stats.logps), mask)
    with pytest.raises(UserError, match="perplexity: row 0 has no response token"):
        perplexity(np.zeros((1, 3)), np.zeros((1, 3), bool))
    with pytest.raises(UserError, match="perplexity: inf at index 0"):
        perplexity(np.full((1, 3), -1000.0), np.ones((1, 3), bool))
