"""Curves of logs: which are drawn, and what is on them."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from dareu_jax.evaluation.metrics.mia import auc
from dareu_jax.reporting.log_plots import by_prefix, plot_files, roc, truth_ratios

N = 6


def table(name, values):
    return {str(n): {name: value} for n, value in enumerate(values)}


@pytest.fixture
def paths(tmp_path):
    """Logs of two models with an attack and extraction strengths."""
    made = []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        log = {
            "forget_Q_A_Prob": {"value_by_index": table("prob", rng.uniform(size=N))},
            "extraction_strength": {
                "value_by_index": table("score", rng.uniform(size=N))
            },
            "mia_loss": {
                side: {"value_by_index": table("score", rng.normal(size=N))}
                for side in ("forget", "holdout")
            },
        }
        for one in (*log.values(), *log["mia_loss"].values()):
            one["agg_value"] = 0.0
        made.append(tmp_path / f"{seed}.json")
        made[-1].write_text(json.dumps(log))
    return made


def test_the_area_below_a_curve_is_the_auc():
    rng = np.random.default_rng(0)
    forget, holdout = rng.normal(size=30).round(1), rng.normal(0.5, 1, 40).round(1)
    x, y = roc(forget, holdout)
    assert (x[0], y[0], x[-1], y[-1]) == (0.0, 0.0, 1.0, 1.0)
    assert np.trapezoid(y, x) == pytest.approx(auc(forget, holdout), rel=1e-12)


def test_extraction_by_prefix_by_hand():
    x, y = by_prefix(np.asarray([1.0, 0.75, 0.0, 0.75]))
    assert x.tolist() == [0.0, 0.25, 1.0] and y.tolist() == [0.25, 0.75, 1.0]
    x, y = by_prefix(np.asarray([0.5]))
    assert x.tolist() == [0.0, 0.5, 1.0] and y.tolist() == [0.0, 1.0, 1.0]


def test_truth_ratios_are_drawn_with_their_distance():
    ax = Figure().subplots()
    rows = {"candidate": np.asarray([1e-9, 0.5]), "reference": np.asarray([0.5, 2.0])}
    truth_ratios(rows, ax)
    assert ax.get_title(loc="left") == "forget truth ratios, KS distance 0.5000"
    assert [line.get_color() for line in ax.get_lines()] == ["#d55e00", "#009e73"]


def test_the_same_logs_give_the_same_picture(dareu, paths, tmp_path):
    drawn = []
    for name in ("a.png", "b.png"):
        how = ["--partial", "--plots", tmp_path / name, "--json"]
        status, out, _ = dareu("score-logs", paths[0], "--reference", paths[1], *how)
        assert status == 0 and json.loads(out)["n_forget"] == N
        drawn.append((tmp_path / name).read_bytes())
    assert drawn[0] == drawn[1] and drawn[0].startswith(b"\x89PNG")


def test_a_log_without_any_curve(paths):
    log = json.loads(paths[0].read_text())
    paths[0].write_text(json.dumps({"forget_Q_A_Prob": log["forget_Q_A_Prob"]}))
    assert plot_files(paths[0], partial=True) is None


@pytest.mark.parametrize("place", ["a.svg", "nowhere/a.png"])
def test_a_place_that_cannot_be(dareu, paths, tmp_path, place):
    how = ["--partial", "--plots", tmp_path / place]
    status, printed, complaint = dareu("score-logs", paths[0], *how)
    assert status == 2 and printed == "" and "give a FILE.png" in complaint
    assert len(complaint.splitlines()) == 1
