"""Means, spreads and cells."""

import pytest

from dareu_jax.evaluation.metric import RETRAINED_LIKELIHOOD, Metric
from dareu_jax.evaluation.rouge import FORGET_ROUGE
from dareu_jax.evaluation.text_quality import FORGET_EMPTY, FORGET_LENGTH
from dareu_jax.reporting import spread, summarise, summary


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


def test_order_is_fixed_and_unknown_models_come_last(make_results):
    assert summary.model_names(make_results()) == ["original", "retrained", "dareu"]
    assert summary.order_models(["mine", "npo", "original"]) == [
        "original",
        "npo",
        "mine",
    ]


def test_cells(make_results):
    results = make_results(3)
    assert summary.cell(results, "dareu", FORGET_ROUGE) == "0.510±0.010"
    likelihood = summary.cell(results, "dareu", RETRAINED_LIKELIHOOD)
    assert likelihood == "-1.25±0.00"
    assert summary.cell(make_results(1), "dareu", FORGET_LENGTH) == "11.0"
    assert summary.cell(results, "dareu", FORGET_EMPTY) == summary.ABSENT


def test_gaps_name_model_and_seed(make_results):
    results = make_results(3)
    assert summary.gaps(results) == []
    del results["seeds"]["1"]["models"]["dareu"]
    assert summary.gaps(results) == [
        "dareu is missing for seed 1; its row averages the rest."
    ]


def test_every_fixed_metric_is_in_exactly_one_group():
    names = [shown.name for shown in summary.METRIC_ORDER]
    assert len(names) == len(set(names)) == 15


def test_a_metric_of_a_new_file_is_shown(make_results, monkeypatch):
    mine = Metric("mine", "my metric", "higher", 0.0, 1.0, "Mine.")
    monkeypatch.setitem(summary.METRICS._entries, "mine", mine)
    monkeypatch.setitem(summary.METRICS._about, "mine", mine.about)
    results = make_results(1)
    assert summary.extra_metrics(results) == ()
    results["models"]["dareu"]["mine"] = 0.5
    assert summary.extra_metrics(results) == (mine,)
