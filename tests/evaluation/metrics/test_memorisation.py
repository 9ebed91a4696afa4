"""Exact memorisation and extraction strength by hand."""

import numpy as np
import pytest

from dareu_jax.errors import UserError
from dareu_jax.evaluation.metrics.memorisation import (
    exact_memorisation,
    extraction_strength,
)
from dareu_jax.evaluation.metrics.token_stats import token_stats

CASES = [
    # hits, exact memorisation, extraction strength
    ([1, 1, 1, 1], 1.0, 1.0),
    ([0, 0, 0, 0], 0.0, 0.0),
    ([0, 1, 1, 1], 0.75, 0.75),
    ([1, 0, 1, 1], 0.75, 0.5),
    ([1, 1, 1, 0], 0.75, 0.0),
    ([1, 0, 0, 1], 0.5, 0.25),
    ([1], 1.0, 1.0),
    ([0], 0.0, 0.0),
]


@pytest.fixture(scope="module")
def hits_and_mask():
    """All cases as one array, misses and hits outside the mask."""
    rng = np.random.default_rng(0)
    hits = rng.integers(0, 2, (len(CASES), 6)).astype(np.float32)
    mask = np.zeros(hits.shape, bool)
    for row, (case, _, _) in enumerate(CASES):
        hits[row, : len(case)], mask[row, : len(case)] = case, True
    return hits, mask


def test_exact_memorisation_by_hand(hits_and_mask):
    expected = [case[1] for case in CASES]
    assert exact_memorisation(*hits_and_mask).tolist() == expected


def test_extraction_strength_by_hand(hits_and_mask):
    expected = [case[2] for case in CASES]
    assert extraction_strength(*hits_and_mask).tolist() == expected


def test_extraction_strength_by_trying_every_prefix():
    rng = np.random.default_rng(1)
    hits, mask = rng.random((50, 9)) < 0.7, np.arange(9) < rng.integers(1, 10, (50, 1))
    for row, keep, found in zip(hits, mask, extraction_strength(hits, mask)):
        said = row[keep]
        k = next(k for k in range(len(said) + 1) if said[k:].all())
        assert found == pytest.approx(1.0 - k / len(said))


def test_extraction_strength_is_what_greedy_decoding_reproduces(told):
    """From k gold tokens the model itself says the rest, and not from k - 1."""
    stats = token_stats(told.model, told.params, told.batch)
    mask, gold = told.batch.response_mask, told.batch.response
    strength = extraction_strength(np.asarray(stats.hits), mask)
    length = mask.sum(axis=1)
    prefix = np.rint((1.0 - strength) * length).astype(int)
    assert len(set(prefix.tolist())) > 2
    for start, reproduced in ((prefix, True), (np.maximum(prefix - 1, 0), False)):
        said = continued(told, start)
        same = ((said == gold) | ~mask).all(axis=1)
        assert (same == (reproduced | (prefix == 0))).all()


def continued(told, start):
    """Greedy responses ``[B, T]`` after the first ``start [B]`` gold tokens."""
    said = told.batch.response.copy()
    for t in range(said.shape[1]):
        batch = told.batch._replace(response=said)
        free = (t >= start) & told.batch.response_mask[:, t]
        likeliest = told.logits(batch)[:, t].argmax(axis=-1)
        said[:, t] = np.where(free, likeliest, said[:, t])
    return said


def test_exact_memorisation_against_numpy(told):
    stats = token_stats(told.model, told.params, told.batch)
    hits = told.logps.argmax(-1) == told.batch.response
    rows = zip(hits, told.batch.response_mask)
    expected = [row[keep].mean() for row, keep in rows]
    found = exact_memorisation(np.asarray(stats.hits), told.batch.response_mask)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("metric", [exact_memorisation, extraction_strength])
def test_a_broken_model_is_an_error_and_not_a_model_that_forgot(told, broken, metric):
    stats = token_stats(told.model, broken, told.batch)
    with pytest.raises(UserError, match=r"nan at index \(0, 0\), 35 of 56"):
        metric(np.asarray(stats.hits), told.batch.response_mask)


@pytest.mark.parametrize("metric", [exact_memorisation, extraction_strength])
def test_an_empty_answer_is_an_error(metric):
    mask = np.array([[True, True], [False, False]])
    with pytest.raises(UserError, match="row 1 has no response token"):
        metric(np.zeros((2, 2)), mask)
