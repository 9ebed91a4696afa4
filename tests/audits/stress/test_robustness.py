"""R and Q in one number, by hand."""

import pytest

from dareu_jax.audits.stress.robustness import (
    harmonic_mean,
    robustness,
    robustness_sentence,
)

RELEARN = {"robustness": {"mean over the updates": 0.5, "few rows": 0.1}}
QUANTISE = {"robustness": {"int8": {}, "nf4": {"probability": 1.0, "rouge": 0.2}}}


@pytest.mark.parametrize(
    ("r", "q", "mean"),
    [(1.0, 1.0, 1.0), (0.5, 1.0, 2 / 3), (0.2, 0.3, 0.24), (0.0, 1.0, 0.0), (0, 0, 0)],
)
def test_the_harmonic_mean(r, q, mean):
    assert harmonic_mean(r, q) == pytest.approx(mean)


def test_r_is_of_the_mean_gain_and_q_of_probability_in_nf4():
    assert robustness(RELEARN) == 0.5 and robustness(QUANTISE) == 1.0
    assert robustness({}) is None


def test_both_in_one_sentence_when_both_were_done():
    said = robustness_sentence({"relearn": RELEARN, "quantise": QUANTISE})
    assert "R = 0.500 (relearn) and Q = 1.000 (quantise): 0.667" in said
    assert robustness_sentence({"relearn": RELEARN}) == ""
    alone = {"robustness": {"mean over the updates": None}}
    assert robustness_sentence({"relearn": alone, "quantise": QUANTISE}) == ""
