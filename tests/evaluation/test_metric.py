"""The metric record, its registry entries and the stored JSON shape."""

import math

import pytest

from dareu_jax.errors import UserError
from dareu_jax.evaluation.metric import (
    ATTRIBUTION_UNSEEN,
    RETRAINED_LIKELIHOOD,
    Metric,
    aggregate,
)
from dareu_jax.evaluation.rouge import FORGET_ROUGE
from dareu_jax.evaluation.text_quality import FORGET_LENGTH
from dareu_jax.evaluation.tow import TOW_ROUGE
from dareu_jax.registry import METRICS

DIRECTIONS = {
    "forget_rouge": "closer",
    "retain_rouge": "higher",
    "test_rouge": "higher",
    "forget_probability": "closer",
    "retain_probability": "higher",
    "test_probability": "higher",
    "attribution_reward": "lower",
    "attribution_unseen": "lower",
    "retrained_likelihood": "higher",
    "forget_empty": "lower",
    "forget_repeated": "lower",
    "forget_unfinished": "lower",
    "forget_length": "closer",
    "tow_rouge": "higher",
    "tow_probability": "higher",
}


@pytest.mark.parametrize(("name", "direction"), DIRECTIONS.items())
def test_declared_with_direction_under_its_own_name(name, direction):
    found = METRICS.get(name)
    assert (found.name, found.direction) == (name, direction)
    assert found.label and found.about.endswith(".")
    assert dict(METRICS.items())[name] == found.about


def test_arrows_and_ranges():
    assert FORGET_ROUGE.arrow == "≈"
    assert TOW_ROUGE.arrow == "↑"
    assert ATTRIBUTION_UNSEEN.arrow == "↓"
    assert RETRAINED_LIKELIHOOD.low == -math.inf
    assert RETRAINED_LIKELIHOOD.high == 0.0
    assert FORGET_LENGTH.high == math.inf


def test_bad_declaration():
    with pytest.raises(ValueError, match="sideways"):
        Metric("m", "m", "sideways", 0.0, 1.0, "x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="of \\('model',\\)"):
        Metric("m", "m", "higher", 0.0, 1.0, "x", ("model",))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="range"):
        Metric("m", "m", "higher", 1.0, 1.0, "x")


def test_aggregate_is_open_unlearnings_shape():
    assert aggregate([0.25, 0.5, 0.75]) == {
        "agg_value": 0.5,
        "value_by_index": {"0": 0.25, "1": 0.5, "2": 0.75},
    }


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_aggregate_names_the_index(bad):
    with pytest.raises(UserError, match="index 2 of 3"):
        aggregate([0.1, 0.2, bad])


def test_aggregate_of_nothing():
    with pytest.raises(UserError, match="no rows"):
        aggregate([])
