"""leak@k against every subset of the samples, and against fresh ones."""

from itertools import combinations

import numpy as np
import pytest

from dareu_jax.audits.stress.sample import draws, expected_maximum


def test_the_estimate_is_the_mean_over_all_subsets():
    values = np.random.default_rng(0).random((3, 6))
    for k in range(1, 7):
        brute = [[max(c) for c in combinations(row, k)] for row in values]
        np.testing.assert_allclose(
            expected_maximum(values, k), np.mean(brute, axis=1), rtol=1e-12
        )


def test_one_is_the_mean_and_all_the_maximum():
    values = np.asarray([0.1, 0.5, 0.3])
    assert expected_maximum(values, 1) == pytest.approx(0.3)
    assert expected_maximum(values, 2) == pytest.approx((0.3 + 0.5 + 0.5) / 3)
    assert expected_maximum(values, 3) == pytest.approx(0.5)


def test_the_estimate_is_unbiased():
    """E max of k uniform numbers is k / (k + 1)."""
    values = np.random.default_rng(1).random((20_000, 8))
    for k in (1, 2, 4, 8):
        assert expected_maximum(values, k).mean() == pytest.approx(
            k / (k + 1), abs=5e-3
        )


@pytest.mark.parametrize("k", [0, 4])
def test_more_than_there_are_cannot_be_drawn(k):
    with pytest.raises(ValueError, match=f"the maximum of {k} of 3 samples"):
        expected_maximum(np.zeros(3), k)


def test_k_doubles_up_to_the_samples():
    assert draws(16) == [1, 2, 4, 8, 16]
    assert draws(6) == [1, 2, 4]
    assert draws(1) == [1]
