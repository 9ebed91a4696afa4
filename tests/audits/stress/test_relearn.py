"""R, the neighbours, the steps that are measured: numbers by hand."""

import numpy as np
import pytest

from dareu_jax.audits.stress.relearn import (
    best_gain,
    evenly,
    jaccard,
    mean_gain,
    measured_steps,
    neighbours,
    relearning_robustness,
    robustness_of,
    summary_of,
)
from dareu_jax.data import NOBODY, Record


@pytest.mark.parametrize(
    ("retrained", "unlearned", "r"),
    [
        (0.2, 0.4, 0.5),  # it comes back twice as fast
        (0.3, 0.3, 1.0),
        (0.5, 0.1, 1.0),  # slower than a model that never saw it: no more than 1
        (0.0, 0.4, 0.0),
        (-0.1, 0.4, 0.0),
        (0.2, 0.0, 1.0),  # nothing came back
        (0.2, -0.1, 1.0),
    ],
)
def test_r(retrained, unlearned, r):
    assert relearning_robustness(retrained, unlearned) == pytest.approx(r)


def test_r_is_of_the_mean_gains():
    gains = {"original": [0.0], "retrained": [0.1, 0.3], "unlearned": [0.2, 0.6]}
    assert robustness_of(gains) == pytest.approx(0.5)
    del gains["retrained"]
    assert robustness_of(gains) is None


def test_the_mean_gain_is_higher_for_who_learns_sooner():
    steps, rows = [0, 1, 4], np.asarray([[0.2, 0.2], [0.2, 0.8], [0.8, 0.8]])
    # late: 0 over the first step, .3 over three; soon: .3 over one, .6 over three
    np.testing.assert_allclose(mean_gain(steps, rows), [0.9 / 4, 2.1 / 4])


def test_the_best_gain_is_where_the_mean_is_highest():
    rows = np.asarray([[0.2, 0.3], [0.6, 0.5], [0.1, 0.9], [0.9, 0.0]])
    np.testing.assert_allclose(best_gain(rows), [0.4, 0.2])  # means .25 .55 .5 .45
    np.testing.assert_allclose(best_gain(rows[::3] * [[1, 1], [0, 0]]), [0, 0])


def test_the_measured_steps_double():
    assert measured_steps(50) == [0, 1, 2, 4, 8, 16, 32, 50]
    assert measured_steps(8) == [0, 1, 2, 4, 8]
    assert measured_steps(1) == [0, 1]


def test_jaccard():
    assert jaccard({"a", "b"}, {"b", "c"}) == pytest.approx(1 / 3)
    assert jaccard(set(), set()) == 0.0


def test_few_rows_are_spread_over_all():
    assert evenly(10, 4) == [0, 3, 6, 9]
    assert evenly(3, 8) == [0, 1, 2]


def test_neighbours_are_the_most_similar_rows_of_other_owners():
    forget = [Record("f", "a", "Where was Ann born?", "In Merawick by the sea.")]
    near = Record("n", "b", "Where was Bob born?", "In Tallin by the sea.")
    far = Record("x", "b", "What is his trade?", "He sells clocks.")
    fact = Record("w", NOBODY, "Where was Ann born?", "In Merawick by the sea.")
    assert neighbours(forget, [fact, far, near], 1) == (near,)
    assert neighbours(forget, [fact, far, near], 9) == (near, far)
    assert neighbours(forget, [fact], 1) == (fact,)  # nobody else is there


def test_a_curve_is_the_mean_over_the_measured_rows():
    path = [{"rouge": [0.0, 1.0, 0.5]}, {"rouge": [1.0, 1.0, 0.0]}]
    assert summary_of(path, [0, 2]) == {"rouge": [0.25, 0.5]}
