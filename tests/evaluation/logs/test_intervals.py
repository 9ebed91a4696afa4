"""Intervals of a log's scores: those of the bootstrap, row by row."""

import json

import numpy as np
import pytest

from dareu_jax.evaluation.logs.files import score_files
from dareu_jax.evaluation.logs.intervals import intervals
from dareu_jax.evaluation.logs.reading import read_log
from dareu_jax.evaluation.metrics.bootstrap import interval
from dareu_jax.evaluation.metrics.truth_ratio import TRUTH_RATIOS

N = 30


def table(**columns):
    rows = {str(n): {k: x[n] for k, x in columns.items()} for n in range(N)}
    return {"agg_value": 0.0, "value_by_index": rows}


@pytest.fixture
def paths(tmp_path):
    """Logs of two models on the same forget and retain rows."""
    made = []
    for seed in range(2):
        rng, tree = np.random.default_rng(seed), {}
        for split in ("forget", "retain"):
            probs = rng.uniform(0.1, 0.9, N)
            losses, wrong = -np.log(probs), rng.uniform(0.5, 2, (N, 3))
            gold = {"prob": probs.tolist(), "avg_loss": losses.tolist()}
            bad = {"prob": np.exp(-wrong).tolist(), "avg_loss": wrong.tolist()}
            tree |= {
                f"{split}_Q_A_Prob": table(**gold),
                f"{split}_Q_A_PARA_Prob": table(**gold),
                f"{split}_Q_A_PERT_Prob": table(**bad),
                f"{split}_Q_A_ROUGE": table(rougeL_recall=probs.tolist()),
            }
        for name in ("forget", "holdout"):
            scores = table(score=rng.normal(size=N).tolist())
            tree.setdefault("mia_loss", {"agg_value": 0.0})[name] = scores
        made.append(tmp_path / f"{seed}.json")
        made[-1].write_text(json.dumps(tree))
    return made


def test_a_mean_has_the_interval_of_its_rows(paths):
    log = read_log(paths[0], partial=True)
    found = intervals(log, None, TRUTH_RATIOS["geometric"])
    rows = log.sets["forget"].probability
    assert found["sets"]["forget"]["probability"] == interval(rows)
    assert found["model_utility"] is None and "tow" not in found


def test_every_score_lies_in_its_interval(paths):
    found = score_files(*paths, partial=True)
    between = found["intervals"]
    pairs = [(found["tow_star"], between["tow_star"])]
    for name in ("mia_auc", "privleak_by_attack"):
        pairs += [(found[name]["loss"], between[name]["loss"])]
    for name, measures in between["sets"].items():
        pairs += [(found["sets"][name][k], ends) for k, ends in measures.items()]
    assert len(pairs) == 9
    for value, (low, high) in pairs:
        assert low < value < high


def test_intervals_of_the_reference_are_drawn_when_asked(paths):
    assert score_files(*paths, partial=True)["reference"]["intervals"] is None
    found = score_files(*paths, partial=True, whole=True)["reference"]["intervals"]
    assert found["mia_auc"]["loss"][0] < 0.5 < found["mia_auc"]["loss"][1]


def test_a_model_beside_itself_has_no_spread_in_tug_of_war(paths):
    found = score_files(paths[0], paths[0], partial=True)
    assert found["intervals"]["tow_star"] == (1.0, 1.0)
    assert found["intervals"]["tow"] is None
    assert found["intervals"]["privleak_by_attack"] == {"loss": (0.0, 0.0)}


def test_an_owners_log_has_a_test_set_of_its_own(tmp_path):
    """(1 - .4)(1 - .1)(1 - .2), and without the test set (1 - .4)(1 - .1)."""
    recall = {"forget": (0.9, 0.5), "retain": (0.9, 1.0), "test": (0.3, 0.5)}
    made = []
    for place in (0, 1):
        tree = {
            f"{split}_Q_A_ROUGE": table(rougeL_recall=[both[place]] * N)
            for split, both in recall.items()
        }
        made.append(tmp_path / f"{place}.json")
        made[-1].write_text(json.dumps(tree))
    found = score_files(*made, partial=True)
    assert found["sets"]["test"]["n"] == N
    assert found["tow"] == pytest.approx(0.6 * 0.9 * 0.8)
    assert found["tow_star"] == pytest.approx(0.6 * 0.9)
