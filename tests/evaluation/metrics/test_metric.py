"""The metric record, its registry entries and the stored JSON shape."""

import math

import pytest

from dareu_jax.errors import UserError
from dareu_jax.evaluation.metrics.metric import Metric, aggregate
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
    assert METRICS.get("forget_rouge").arrow == "≈"
    assert METRICS.get("tow_rouge").arrow == "↑"
    assert METRICS.get("attribution_unseen").arrow == "↓"
    assert METRICS.get("retrained_likelihood").low == -math.inf
    assert METRICS.get("retrained_likelihood").high == 0.0
    assert METRICS.get("forget_length").high == math.inf


GOOD = {
    "name": "m",
    "label": "m",
    "direction": "higher",
    "low": 0.0,
    "high": 1.0,
    "about": "x",
    "compute": lambda judged: [0.5],
}


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"direction": "sideways"}, "direction 'sideways'"),
        ({"of": ("model",)}, r"of \('model',\)"),
        ({"of": ()}, r"of \(\)"),
        ({"high": 0.0}, r"range \[0.0, 0.0\]"),
        ({"group": "mine"}, "group 'mine'"),
        ({"compute": None}, r"of \('run',\) with compute = None"),
        ({"of": ("log",)}, r"of \('log',\) with compute = <function"),
    ],
)
def test_bad_declaration(bad, says):
    assert Metric(**GOOD).of == ("run",)
    with pytest.raises(ValueError, match=f"metric 'm': {says}"):
        Metric(**GOOD | bad)


def test_a_declaration_names_its_fields():
    with pytest.raises(TypeError, match="positional"):
        Metric("m", "m", "higher", 0.0, 1.0, "x")


def test_aggregate_is_open_unlearnings_shape():
    assert aggregate([0.25, 0.5, 0.75]) == {
        "agg_value": 0.5,
        "value_by_index": {"0": 0.25, "1": 0.5, "2": 0.75},
    }


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_aggregate_names_the_index(bad):
    with pytest.raises(UserError, match=r"metric x: (nan|-?inf) at index 2 of 3"):
        aggregate([0.1, 0.2, bad], "metric x")


def test_aggregate_of_nothing():
    with pytest.raises(UserError, match="no rows"):
        aggregate([])
