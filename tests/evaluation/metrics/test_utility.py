"""Model utility against numbers worked by hand."""

import numpy as np
import pytest

from dareu_jax.evaluation.metrics.utility import (
    TERMS,
    model_utility,
    normalised_probability,
)


def test_nine_terms():
    assert len(set(TERMS)) == 9


def test_harmonic_mean_by_hand():
    terms = dict.fromkeys(TERMS, 1.0) | {TERMS[0]: 0.5, TERMS[8]: 0.25}
    assert model_utility(terms) == pytest.approx(9 / (7 + 2 + 4))


def test_equal_terms_are_their_mean_and_more_terms_change_nothing():
    terms = dict.fromkeys((*TERMS, "other"), 0.3)
    assert model_utility(terms) == pytest.approx(0.3)


@pytest.mark.parametrize("name", TERMS)
def test_zero_if_any_is_zero(name):
    assert model_utility(dict.fromkeys(TERMS, 0.9) | {name: 0.0}) == 0.0


def test_refuses_missing_terms_and_impossible_ones():
    with pytest.raises(ValueError, match="needs wf_Truth_Ratio"):
        model_utility(dict.fromkeys(TERMS[:8], 0.5))
    for bad in (1.5, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"ra_Q_A_ROUGE = .* outside \[0, 1\]"):
            model_utility(dict.fromkeys(TERMS, 0.5) | {"ra_Q_A_ROUGE": bad})


def test_choosing_among_four_answers():
    right, wrong = np.array([0.3, 0.0]), np.array([[0.1, 0.1, 0.1], [0.0, 0.0, 0.0]])
    found = normalised_probability(right, wrong)
    np.testing.assert_allclose(found, [0.5, 0.0], rtol=1e-9)
