"""Membership inference against numbers worked by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from dareu_jax.evaluation.metrics.mia import auc, privleak, rel_diff


@pytest.mark.parametrize(
    ("forget", "holdout", "area"),
    [
        ([1, 2], [3, 4], 1.0),  # forget far more likely: lower scores
        ([3, 4], [1, 2], 0.0),
        ([1, 3], [2, 4], 3 / 4),
        ([5, 5], [5, 5, 5], 1 / 2),
        ([1, 2], [2], 3 / 4),  # above one, tied with the other
    ],
)
def test_auc_by_hand(forget, holdout, area):
    assert auc(np.array(forget), np.array(holdout)) == area


def test_auc_counts_pairs():
    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 1, 30).round(1), rng.normal(1, 1, 50).round(1)
    pairs = (b[None] > a[:, None]) + 0.5 * (b[None] == a[:, None])
    assert auc(a, b) == pytest.approx(pairs.mean(), rel=1e-12)
    assert auc(a, b) == pytest.approx(1 - auc(b, a), rel=1e-12)
    assert auc(np.exp(a), np.exp(b)) == auc(a, b)


@pytest.mark.parametrize("area", [0.0, 0.39, 0.5, 1.0])
def test_like_the_retrained_model_is_zero(area):
    assert privleak(area, area) == 0.0 and rel_diff(area, area) == 0.0


def test_privleak_by_hand():
    assert privleak(1.0, 0.5) == pytest.approx(-100.0)
    assert privleak(0.25, 0.5) == pytest.approx(50.0)
    assert rel_diff(0.75, 0.5) == pytest.approx(50.0)


@pytest.mark.parametrize(
    ("scores", "says"), [([], "needs scores"), ([1.0, math.nan], "not finite")]
)
def test_refuses_no_scores_and_no_numbers(scores, says):
    with pytest.raises(ValueError, match=says):
        auc(np.array(scores), np.array([1.0]))
    with pytest.raises(ValueError, match=says):
        auc(np.array([1.0]), np.array(scores))


def test_auc_is_that_of_scipy_with_ties():
    rng = np.random.default_rng(2)
    forget, holdout = rng.normal(size=(2, 40)).round(1)
    holdout = holdout[:25]
    u = stats.mannwhitneyu(holdout, forget).statistic
    assert auc(forget, holdout) == pytest.approx(u / (40 * 25), rel=1e-14)
