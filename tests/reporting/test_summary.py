"""Means, spreads and cells."""

import pytest

from dareu_jax.evaluation.metrics.metric import Metric
from dareu_jax.evaluation.seeds import spread, summarise
from dareu_jax.registry import METRICS
from dareu_jax.reporting import summary
from dareu_jax.reporting.plots import colours


def test_summarise_takes_the_mean_over_seeds():
    seeds = {
        "0": {"models": {"a": {"x": 1.0, "y": 2.0}}, "tow": {"a": {"rouge": 0.5}}},
        "1": {"models": {"a": {"x": 3.0, "y": None}}, "tow": {}},
    }
    assert summarise(seeds) == {
        "models": {"a": {"x": 2.0, "y": 2.0}},
        "tow": {"a": {"rouge": 0.5}},
    }
    assert summarise({}) == {"models": {}, "tow": {}}


def test_spread_has_ddof_one(make_results):
    # 0.5, 0.51, 0.52: squared deviations 1e-4 + 0 + 1e-4, over n - 1 = 2.
    assert spread(make_results(3), "dareu", "forget_rouge") == (
        pytest.approx(0.51),
        pytest.approx(0.01),
    )
    assert spread(make_results(3), "dareu", "tow_rouge")[0] == pytest.approx(0.76)
    assert spread(make_results(1), "dareu", "forget_rouge") == (0.5, None)
    assert spread(make_results(1), "dareu", "forget_empty") == (None, None)


def test_spread_falls_back_to_the_stored_means():
    stored = {"models": {"dareu": {"forget_rouge": 0.5}}, "tow": {}}
    assert spread(stored, "dareu", "forget_rouge") == (0.5, None)


def test_oracles_come_first_and_methods_in_the_order_of_the_run(make_results):
    assert summary.model_names(make_results()) == ["original", "retrained", "dareu"]
    given = ["mine", "npo", "retrained", "dareu", "original"]
    ordered = ["original", "retrained", "mine", "npo", "dareu"]
    assert summary.order_models(given) == ordered


def test_every_method_has_a_colour_of_its_own():
    names = ["original", "retrained", *(f"method_{i}" for i in range(8))]
    found = colours(names)
    assert len({found[name] for name in names}) == len(names)
    assert {**found, **colours([*names, "one more"])} == colours([*names, "one more"])


def test_cells(make_results):
    def cell(results, name):
        return summary.cell(results, "dareu", METRICS.get(name))

    results = make_results(3)
    assert cell(results, "forget_rouge") == "0.510±0.010"
    assert cell(results, "retrained_likelihood") == "-1.25±0.00"
    assert cell(make_results(1), "forget_length") == "11.0"
    assert cell(results, "forget_empty") == summary.ABSENT


def test_gaps_name_model_and_seed(make_results):
    results = make_results(3)
    assert summary.gaps(results) == []
    del results["seeds"]["1"]["models"]["dareu"]
    assert summary.gaps(results) == [
        "dareu is missing for seed 1; its row averages the rest."
    ]


def test_every_metric_of_a_run_is_in_exactly_one_column(make_results):
    results = make_results(1)
    every = [METRICS.get(name) for name in METRICS.names()]
    of_run = {x.name: 0.5 for x in every if "run" in x.of}
    results["seeds"]["0"]["models"]["dareu"] = of_run
    groups = [name for table in summary.TABLES.values() for name in table]
    names = [x.name for group in groups for x in summary.columns(results, group)]
    assert names == [x.name for x in summary.columns(results)]
    assert len(names) == len(set(names))
    assert {*names} == {*of_run, "tow_rouge", "tow_probability"}


def test_a_metric_of_a_new_file_is_shown(make_results, monkeypatch):
    mine = Metric(
        name="mine",
        label="my metric",
        direction="higher",
        low=0.0,
        high=1.0,
        about="Mine.",
        compute=lambda judged: None,
    )
    monkeypatch.setitem(METRICS._entries, "mine", mine)
    monkeypatch.setitem(METRICS._about, "mine", mine.about)
    results = make_results(1)
    assert summary.columns(results, "further") == []
    results["seeds"]["0"]["models"]["dareu"]["mine"] = 0.5
    assert summary.columns(results, "further") == [mine]
    assert summary.columns(results)[-1] == mine
    assert summary.cell(results, "dareu", mine) == "0.500"
