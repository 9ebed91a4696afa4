"""The exact Kolmogorov-Smirnov test: closed forms, small cases, scipy."""

import math

import numpy as np
import pytest
from scipy.stats import ks_2samp

from dareu_jax.evaluation.metrics.forget_quality import forget_quality

DISJOINT = {
    40: 1.8603403656e-23,
    200: 1.9426434495e-119,
    300: 1.4802978792e-179,
    400: 1.0635896770e-239,
}


@pytest.mark.parametrize(("n", "p"), DISJOINT.items())
def test_disjoint_samples_have_the_smallest_p(n, p):
    found = forget_quality(np.arange(n) + 0.0, np.arange(n) + 1e3)
    assert found.p == pytest.approx(2 / math.comb(2 * n, n), rel=1e-9)
    assert found.p == pytest.approx(p, rel=1e-9)
    assert found.log10_p == pytest.approx(math.log10(p), rel=1e-9)
    assert found.statistic == 1.0 and found.floor


def test_log10_p_is_there_where_p_is_too_small_for_a_float():
    found = forget_quality(np.zeros(2000), np.ones(2000))
    exact = math.log10(2) - math.log10(math.comb(4000, 2000))
    assert found.p == 0.0 and found.log10_p == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("n", [1, 2, 400])
def test_identical_samples(n):
    values = np.linspace(0.0, 2.0, n)
    found = forget_quality(values, values[::-1])
    assert found == (1.0, 0.0, 0.0, False)


def test_two_against_two_by_hand():
    # 6 orders of two and two: the gap is 2/2 in aabb, bbaa; 1/2 in the other four
    assert forget_quality(np.array([1, 2]), np.array([3, 4])).p == pytest.approx(2 / 6)
    half = forget_quality(np.array([1, 3]), np.array([2, 4]))
    assert half.statistic == 0.5 and half.p == pytest.approx(1.0) and not half.floor


@pytest.mark.parametrize("n", [3, 7, 40, 117, 400])
@pytest.mark.parametrize("shift", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("digits", [1, 12])
def test_as_scipy_with_and_without_ties(n, shift, digits):
    rng = np.random.default_rng(n)
    a, b = rng.lognormal(0, 1, n).round(digits), rng.lognormal(shift, 1, n)
    b = b.round(digits)
    found, theirs = forget_quality(a, b), ks_2samp(a, b, method="exact")
    assert found.statistic == pytest.approx(theirs.statistic, abs=1e-12)
    assert found.p == pytest.approx(theirs.pvalue, rel=1e-9)
    assert found.log10_p == pytest.approx(math.log10(found.p), abs=1e-12)


def test_the_same_for_the_inverse_and_the_other_way_round():
    rng = np.random.default_rng(0)
    a, b = rng.lognormal(0, 1, 60), rng.lognormal(0.5, 1, 60)
    found = forget_quality(a, b)
    assert found == forget_quality(b, a) == forget_quality(1 / a, 1 / b)


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [
        ([], [], "0 values"),
        ([1.0], [1.0, 2.0], "1 values against 2"),
        ([1.0, math.nan], [1.0, 2.0], "not finite"),
    ],
)
def test_refuses_what_cannot_be_compared(a, b, says):
    with pytest.raises(ValueError, match=says):
        forget_quality(np.array(a), np.array(b))
