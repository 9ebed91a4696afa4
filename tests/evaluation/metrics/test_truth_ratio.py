"""Truth ratios against numbers worked by hand."""

import numpy as np
import pytest

from dareu_jax.evaluation.metrics.truth_ratio import (
    TRUTH_RATIOS,
    closer_to_one,
    true_is_better,
)

RIGHT = -np.log([0.5, 0.2])
WRONG = -np.log([[0.1, 0.4], [0.8, 0.05]])
# geometric means of the wrong: sqrt(.04) = .2 in both rows; arithmetic .25, .425
BY_HAND = {
    "geometric": [0.2 / 0.5, 0.2 / 0.2],
    "arithmetic": [0.25 / 0.5, 0.425 / 0.2],
    "share": [0.5 / 0.7, 0.2 / 0.4],
}


@pytest.mark.parametrize("name", TRUTH_RATIOS)
def test_rows_by_hand(name):
    found = TRUTH_RATIOS[name].rows(RIGHT, WRONG)
    np.testing.assert_allclose(found, BY_HAND[name], rtol=1e-8)


@pytest.mark.parametrize(
    ("name", "forget", "others"),
    [
        ("geometric", (0.4 + 1.0) / 2, (0.6 + 0.0) / 2),
        ("arithmetic", (0.5 + 0.2 / 0.425) / 2, (0.5 + 0.0) / 2),
        ("share", (5 / 7 + 1 / 2) / 2, (5 / 7 + 1 / 2) / 2),
    ],
)
def test_aggregates_by_hand(name, forget, others):
    kind = TRUTH_RATIOS[name]
    ratio = kind.rows(RIGHT, WRONG)
    assert kind.forget(ratio) == pytest.approx(forget, rel=1e-8)
    assert kind.others(ratio) == pytest.approx(others, rel=1e-8)


def test_aggregates_of_extremes():
    assert closer_to_one(np.array([1.0, 0.0, 1e300])) == pytest.approx(1 / 3)
    assert true_is_better(np.array([0.0, 1.0, 5.0])) == pytest.approx(1 / 3)


@pytest.mark.parametrize("name", TRUTH_RATIOS)
def test_answers_without_any_probability_give_a_finite_ratio(name):
    none = np.full(1, 2000.0)
    for right, wrong in ((none, none), (none, none * 0), (none * 0, none)):
        kind = TRUTH_RATIOS[name]
        ratio = kind.rows(right, wrong[:, None])
        assert np.isfinite(ratio).all()
        assert 0.0 <= kind.forget(ratio) <= 1.0 and 0.0 <= kind.others(ratio) <= 1.0
