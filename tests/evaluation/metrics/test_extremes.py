"""Every score of logs, of a model like the reference and of models that are broken."""

import copy
import json
import math

import numpy as np
import pytest

from dareu_jax.evaluation.logs.flags import flags
from dareu_jax.evaluation.logs.reading import read_log
from dareu_jax.evaluation.logs.scores import by_metric, quality_of_retrainings, score
from dareu_jax.evaluation.metrics.rouge import rouge_scores
from dareu_jax.evaluation.metrics.truth_ratio import TRUTH_RATIOS
from dareu_jax.registry import METRICS

N, WRONG, VOCAB = 12, 3, 300
WORDS = [
    *("amber", "birch", "cedar", "delta", "ember", "fjord"),
    *("grove", "heath", "inlet", "jetty", "knoll", "ledge"),
]
SHORT = ("forget", "retain", "ra", "wf")
SCORES = {name for name in METRICS.names() if {"log", "pair"} & {*METRICS.get(name).of}}


def rows(**columns):
    """Rows of a metric; every column has a value, or a list of values, per row."""
    table = {str(n): {k: x[n] for k, x in columns.items()} for n in range(N)}
    return {"agg_value": 0.0, "value_by_index": table}


def losses(values):
    """Rows of losses in nats per token, ``[N]`` or ``[N, K]``."""
    return rows(prob=np.exp(-values).tolist(), avg_loss=values.tolist())


def gold(short):
    """Different right answers of several words."""
    return [f"{short} {WORDS[n]} lies by the {WORDS[n - 5]}" for n in range(N)]


def answers(short, said):
    scores = rouge_scores(said, gold(short))
    recall = [score["rougeL_recall"] for score in scores]
    return rows(rougeL_recall=recall, generation=said, ground_truth=gold(short))


def log_of(said, loss, unfinished=0.0):
    """A log of open-unlearning's shape, with all that it can have.

    Args:
      said: ``(set, gold answers) -> answers``; loss: ``(what, shape) -> nats``.
      unfinished: of every answer.
    """
    log = {}
    for short in SHORT:
        log[f"{short}_Q_A_Prob"] = losses(loss(f"{short} gold", (N,)))
        if short in ("forget", "retain"):
            log[f"{short}_Q_A_PARA_Prob"] = losses(loss(f"{short} gold", (N,)))
        log[f"{short}_Q_A_PERT_Prob"] = losses(loss(f"{short} wrong", (N, WRONG)))
        log[f"{short}_Q_A_ROUGE"] = answers(short, said(short, gold(short)))
        log[f"{short}_text_quality"] = rows(unfinished=[unfinished] * N)
    log["forget_Q_PARA_A_ROUGE"] = answers("forget", said("forget", gold("forget")))
    known = np.exp(-loss("forget gold", (N,)))
    log["extraction_strength"] = rows(score=known.tolist())
    for attack in ("loss", "min_k"):
        log[f"mia_{attack}"] = {
            "forget": rows(score=loss("forget gold", (N,)).tolist()),
            "holdout": rows(score=loss("holdout", (N,)).tolist()),
            "agg_value": 0.0,
        }
    return log


def some(low, high, seed):
    """Losses drawn between two bounds, those of wrong and unseen answers higher."""

    def loss(what, shape):
        rng = np.random.default_rng([seed, *what.encode()])
        more = 0.0 if what.endswith("gold") else 1.0
        return rng.uniform(low, high, shape) + more

    return loss


def knows(short, right):
    return right


def retrained(short, right):
    """Every second word of the forget answers, all of the others."""
    halves = [" ".join(text.split()[1::2]) for text in right]
    return halves if short == "forget" else right


LOGS = {
    "intact": log_of(knows, some(0.05, 0.4, 0)),
    "retrained": log_of(retrained, some(0.5, 2.0, 1)),
}
BROKEN = {
    "nothing": (
        log_of(lambda short, right: [""] * N, some(1.0, 4.0, 2)),
        "100 % of forget answers are empty",
    ),
    "one word": (
        log_of(lambda short, right: ["the"] * N, some(1.0, 4.0, 3)),
        "100 % are one and the same text",
    ),
    "one word each": (
        log_of(lambda short, right: WORDS[:N], some(1.0, 4.0, 4)),
        "100 % of forget answers are one word where the right answer has more",
    ),
    "one token again and again": (
        log_of(lambda short, right: [f"{x} {x} {x} {x}" for x in WORDS], some(1, 4, 5)),
        "100 % of forget answers repeat themselves",
    ),
    "no end": (
        log_of(knows, some(1.0, 4.0, 6), unfinished=1.0),
        "100 % of forget answers are cut off at the length limit",
    ),
    "uniform logits": (
        log_of(knows, lambda what, shape: np.full(shape, math.log(VOCAB))),
        f"all {N} forget truth ratios are equal",
    ),
    "no probability for anything": (
        log_of(knows, some(30.0, 60.0, 7)),
        "100 % of the right forget answers have a probability below 1e-08",
    ),
}
"""What a model does, its log, and what is said of it."""


@pytest.fixture
def scored(tmp_path):
    """Scores of one log beside another's, which is the second retrained model's too."""

    def call(log, reference):
        logs = []
        for name, tree in (("log", log), ("reference", reference)):
            path = tmp_path / f"{name}.json"
            path.write_text(json.dumps(tree))
            logs.append(read_log(path))
        found = score(*logs) | {"reference": score(logs[1], logs[1])}
        if "metrics" not in reference:
            kind = TRUTH_RATIOS["geometric"]
            found |= quality_of_retrainings(logs[1], logs[1], kind)
        return found

    return call


def owners(log):
    """What it says of forget and retain, as a run keeps it; retain stands for test."""
    metrics, texts = {}, {}
    for split, short in (("forget", "forget"), ("retain", "retain"), ("test", "ra")):
        table = log[f"{short}_Q_A_ROUGE"]["value_by_index"]
        probs = log[f"{short}_Q_A_Prob"]["value_by_index"]
        texts[split] = [row["generation"] for row in table.values()]
        for name, values in (
            ("rouge", {n: row["rougeL_recall"] for n, row in table.items()}),
            ("probability", {n: row["prob"] for n, row in probs.items()}),
        ):
            metrics[f"{split}_{name}"] = {"agg_value": 0.0, "value_by_index": values}
    return {"metrics": metrics, "answers": texts}


def ideal(metric):
    """What a comparison of a model with itself comes to."""
    at = {"higher": metric.high, "lower": metric.low, "closer": 0.0}
    return at[metric.direction]


def test_every_registered_score_is_among_the_scores(scored):
    logs = LOGS["intact"], LOGS["retrained"]
    theirs, ours = scored(*logs), scored(*map(owners, logs))
    assert {*by_metric(theirs), *by_metric(ours)} == SCORES


@pytest.mark.parametrize("shape", [dict, owners], ids=["open-unlearning", "dareu"])
def test_a_model_like_the_reference_has_every_ideal_value(scored, shape):
    found = scored(shape(LOGS["retrained"]), shape(LOGS["retrained"]))
    assert not found["flags"] and not found["reference"]["flags"]
    beside = by_metric(found["reference"])
    for name, values in by_metric(found).items():
        metric = METRICS.get(name)
        for attack, value in values.items():
            assert metric.low <= value <= metric.high, name
            if metric.of == ("pair",):
                assert value == ideal(metric), name
            else:
                assert value == beside[name][attack], name


def test_an_intact_model_shows_no_sign(scored):
    found = scored(LOGS["intact"], LOGS["retrained"])
    assert not found["flags"] and not found["reference"]["flags"]


def better(metric, value, other):
    """Whether a comparison with the reference is won."""
    if metric.direction == "closer":
        return abs(value) < abs(other)
    return value > other if metric.direction == "higher" else value < other


@pytest.mark.parametrize(("log", "says"), BROKEN.values(), ids=BROKEN)
def test_a_broken_model_wins_no_comparison_without_a_flag(scored, log, says):
    beside = scored(log, LOGS["retrained"])
    intact = by_metric(scored(LOGS["intact"], LOGS["retrained"]))
    won = set()
    for name, values in by_metric(beside).items():
        metric = METRICS.get(name)
        for attack, value in values.items():
            assert metric.low <= value <= metric.high, name
            if metric.of == ("pair",) and better(metric, value, intact[name][attack]):
                won.add(name)
    assert any(says in flag for flag in beside["flags"]), (won, beside["flags"])


@pytest.mark.parametrize(("log", "says"), BROKEN.values(), ids=BROKEN)
def test_a_broken_model_is_flagged_without_a_reference(tmp_path, log, says):
    (tmp_path / "log.json").write_text(json.dumps(log))
    found = flags(read_log(tmp_path / "log.json"), None, TRUTH_RATIOS["geometric"])
    assert any(says in flag for flag in found), found


def test_a_sign_that_the_reference_cannot_show_is_not_said_to_be_absent(scored):
    bare = copy.deepcopy(LOGS["retrained"])
    del bare["forget_text_quality"]
    flag = scored(BROKEN["no end"][0], bare)["flags"][0]
    assert flag.startswith("100 % of forget answers are cut off at the length limit:")


def test_a_broken_reference_is_flagged(scored):
    found = scored(LOGS["retrained"], BROKEN["nothing"][0])
    assert any("are empty" in flag for flag in found["reference"]["flags"])


def test_what_the_reference_shows_as_well_is_no_sign(scored):
    log = BROKEN["nothing"][0]
    assert not scored(log, copy.deepcopy(log))["flags"]


def places(tree, path=()):
    """Paths of row 3's numbers, the first one of a list."""
    if isinstance(tree, float):
        yield path
    elif isinstance(tree, list):
        yield (*path, 0)
    elif isinstance(tree, dict):
        for key in tree.keys() - {"agg_value", *map(str, range(N))} | tree.keys() & {
            "3"
        }:
            yield from places(tree[key], (*path, key))


def is_read(place):
    """Of the sets with four answers both fields, of the others one."""
    name, field = place[0], [x for x in place if isinstance(x, str)][-1]
    if name.startswith(("ra", "wf")):
        return True
    return field != ("avg_loss" if name.endswith("_Q_A_Prob") else "prob")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_no_number_that_is_none_is_scored(tmp_path, bad):
    path = tmp_path / "log.json"
    read = [*filter(is_read, places(LOGS["intact"]))]
    assert len(read) == 28
    for place in read:
        log = copy.deepcopy(LOGS["intact"])
        at = log
        for key in place[:-1]:
            at = at[key]
        at[place[-1]] = bad
        path.write_text(json.dumps(log))
        found = score(read_log(path))
        counts = [x for metrics in found["skipped"].values() for x in metrics.values()]
        assert counts == [1], place
        json.dumps(found, allow_nan=False)
