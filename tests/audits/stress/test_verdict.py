"""What is said of an unlearned model beside the retrained one."""

import math

import pytest

from dareu_jax.audits.stress.context import outcome
from dareu_jax.audits.stress.verdict import above_of, paired_gap, standing, verdict_of
from dareu_jax.errors import UserError

ORIGINAL = [0.9, 0.9, 0.9, 0.9]


def said(unlearned, retrained):
    values = {"original": ORIGINAL, "retrained": retrained, "unlearned": unlearned}
    return verdict_of("leak", values, "it leaks")


def test_the_gap_and_its_error():
    gap, error = paired_gap([1.0, 2.0, 3.0], [0.0, 0.0, 0.0])
    assert gap == 2.0 and error == pytest.approx(1.0 / math.sqrt(3))
    assert paired_gap([1.0], [0.5]) == (0.5, math.inf)


def test_the_same_numbers_cannot_be_told_apart():
    text = said([0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4])
    assert "0.250 against 0.250 retrained" in text and "cannot tell" in text


def test_noise_is_no_difference():
    assert "within two standard errors over 4" in said([0, 1, 0, 1], [1, 0, 1, 0])


def test_above_says_what_that_means_and_below_is_no_merit():
    assert said([0.5] * 4, [0.2] * 4).endswith("0.300 ± 0.000 above; it leaks.")
    assert "0.200 ± 0.000 below; less than retraining" in said([0.0] * 4, [0.2] * 4)


@pytest.mark.parametrize(
    ("unlearned", "retrained", "found"),
    [
        ([0, 1, 0, 1], [1, 0, 1, 0], "like retrained"),
        ([0.5] * 4, [0.5] * 4, "like retrained"),
        ([0.5] * 4, [0.2] * 4, "above retrained"),
        ([0.1] * 4, [0.2] * 4, "below retrained"),
        ([0.9], [0.1], "like retrained"),  # one record says nothing of the spread
    ],
)
def test_standing(unlearned, retrained, found):
    values = {"original": ORIGINAL, "retrained": retrained, "unlearned": unlearned}
    assert standing(values) == found
    del values["retrained"]
    assert standing(values) == "not compared"


def test_parts_that_are_above_are_named():
    low, high = [0.1, 0.1], [0.3, 0.3]
    parts = {
        "words": {"original": high, "retrained": low, "unlearned": high},
        "gradients": {"original": high, "retrained": high, "unlearned": low},
        "share": {"original": [0.0], "retrained": [0.0], "unlearned": [1.0]},
    }
    assert above_of(parts) == "Above the retrained model: words (0.300 against 0.100)."
    assert above_of({"alone": {"original": high, "unlearned": high}}) == ""
    found = outcome("leak", parts["gradients"], "it leaks", parts=parts)
    assert found["verdict"].endswith(above_of(parts))
    assert "0.200 ± 0.000 below" in found["verdict"]


def test_without_a_retrained_model_nothing_is_compared():
    values = {"original": ORIGINAL, "unlearned": [0.1, 0.1]}
    text = verdict_of("leak", values, "it leaks")
    assert text.startswith("leak: 0.100 unlearned, 0.900 original; this run has no")


def test_numbers_that_are_none_are_refused():
    values = {"original": [0.5, 0.5], "unlearned": [0.5, math.nan]}
    with pytest.raises(UserError, match="leak: nan for the unlearned model in forget"):
        outcome("leak", values, "it leaks")
    with pytest.raises(UserError, match="part: inf"):
        outcome("leak", {"unlearned": [1.0]}, "", parts={"part": {"x": [math.inf]}})
