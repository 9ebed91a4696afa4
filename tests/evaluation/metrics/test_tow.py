"""Tug-of-War against numbers worked by hand."""

import math

import pytest

from dareu_jax.evaluation.metrics.tow import tow


def scores(forget, retain, test):
    return {"forget": forget, "retain": retain, "test": test}


def test_identity_is_one():
    assert tow(scores(0.3, 0.8, 0.5), scores(0.3, 0.8, 0.5)) == 1.0


def test_known_value():
    value = tow(scores(0.9, 0.8, 0.7), scores(0.5, 0.85, 0.7))
    assert value == pytest.approx(0.6 * 0.95 * 1.0)


def test_total_difference_on_one_split_is_zero():
    assert tow(scores(1.0, 0.5, 0.5), scores(0.0, 0.5, 0.5)) == 0.0


def test_symmetric_and_too_much_forgetting_costs_the_same():
    retrained = scores(0.4, 0.9, 0.6)
    less, more = scores(0.6, 0.9, 0.6), scores(0.2, 0.9, 0.6)
    assert tow(less, retrained) == pytest.approx(tow(more, retrained))
    assert tow(less, retrained) == tow(retrained, less)


@pytest.mark.parametrize("bad", [-0.01, 1.01, 42.1, math.nan])
def test_refuses_scores_outside_the_range(bad):
    with pytest.raises(ValueError, match=r"retrained model's test score .* \[0, 1\]"):
        tow(scores(0.5, 0.5, 0.5), scores(0.5, 0.5, bad))


def test_refuses_a_missing_split():
    with pytest.raises(ValueError, match="unlearned model has no test score"):
        tow({"forget": 0.5, "retain": 0.5}, scores(0.5, 0.5, 0.5))


def test_without_a_test_split_it_is_the_product_of_forget_and_retain():
    u, r = {"forget": 0.9, "retain": 0.8}, {"forget": 0.5, "retain": 0.85}
    assert tow(u, r, ("forget", "retain")) == pytest.approx(0.6 * 0.95)
