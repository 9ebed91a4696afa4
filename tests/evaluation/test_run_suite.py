"""Judging a model: likelihood of gold answers, greedy answers, every metric."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.data import take
from dareu_jax.errors import UserError
from dareu_jax.evaluation.metrics.metric import aggregate
from dareu_jax.evaluation.metrics.token_stats import token_stats
from dareu_jax.evaluation.metrics.tow import SPLITS
from dareu_jax.evaluation.run_suite import (
    Answers,
    Judged,
    RunSuite,
    answer,
    evaluate_model,
    in_batches,
    mean_logp,
    mean_logps,
    owners_score,
)
from dareu_jax.models import logits_of, response_hidden
from dareu_jax.registry import METRICS
from dareu_jax.runs.evaluate import rows_of


@pytest.fixture(scope="module")
def suite(tiny_run, tiny_inputs):
    records = {
        "forget": tiny_run.split.forget[:6],
        "retain": tiny_run.split.retain[:6],
        "test": tiny_run.split.test[:6],
    }
    return RunSuite(
        model=tiny_run.model,
        tokenizer=tiny_run.tokenizer,
        tokens={split: tiny_run.tokens(rows) for split, rows in records.items()},
        gold={split: [r.response for r in rows] for split, rows in records.items()},
        judges={"attribution_reward": tiny_inputs.stages["reward"][:2]},
        forget_columns=tiny_inputs.forget_columns,
        retrained=tiny_inputs.reference,
        reference=tiny_inputs.reference,
        batch_size=4,
        max_new_tokens=8,
        place=lambda batch: batch,
    )


@pytest.fixture(scope="module")
def params(tiny_inputs):
    """Sharper than fresh parameters, so that greedy answers differ."""
    return jax.tree.map(lambda x: 1.5 * x, tiny_inputs.reference)


@pytest.fixture(scope="module")
def counts():
    """Rows of every batch that was read or answered while the model was judged."""
    return []


@pytest.fixture(scope="module")
def judged(suite, params, counts):
    suite = dataclasses.replace(suite, counted=counts.append)
    return evaluate_model(suite, params)


def test_the_rows_that_are_read_are_known_beforehand(suite, judged, counts):
    assert set(counts) == {suite.batch_size}
    assert sum(counts) == rows_of(suite, classifiers=False)


def test_mean_logp_against_numpy(suite, params):
    batch = suite.tokens["forget"]
    lengths = np.asarray([1, 5, 9, 13, 17, 24])
    short = np.arange(batch.response.shape[1]) < lengths[:, None]
    batch = batch._replace(response_mask=batch.response_mask & short)
    hidden = jax.jit(response_hidden, static_argnums=0)(suite.model, params, batch)
    logits = logits_of(suite.model, params, hidden)
    logits = np.asarray(logits, np.float64)
    logps = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    picked = np.take_along_axis(logps, batch.response[..., None], axis=-1)[..., 0]
    expected = [row[keep].mean() for row, keep in zip(picked, batch.response_mask)]
    out = mean_logp(suite.model, params, batch)
    assert out.dtype == jnp.float32 and out.shape == (6,)
    np.testing.assert_allclose(out, expected, atol=1e-4)


def test_an_empty_answer_has_no_likelihood_to_lose(suite, params):
    batch = suite.tokens["forget"]
    nothing = batch._replace(response_mask=np.zeros_like(batch.response_mask))
    np.testing.assert_array_equal(mean_logp(suite.model, params, nothing), np.zeros(6))


def test_in_batches_drops_what_fills_the_last_batch(suite):
    seen = in_batches(suite, suite.tokens["retain"], lambda batch: batch.index * 10)
    np.testing.assert_array_equal(seen, np.arange(6) * 10)


def test_records_of_like_length_are_judged_together(suite, params):
    tokens = suite.tokens["retain"]
    lengths = np.asarray([24, 3, 20, 8, 7, 5])
    short = np.arange(tokens.response.shape[1]) < lengths[:, None]
    tokens = tokens._replace(response_mask=tokens.response_mask & short)
    prompt, response = tokens.prompt.shape[1], tokens.response.shape[1]
    narrow = dataclasses.replace(suite, widths=((prompt, 8), (prompt, response)))
    seen = []

    def score(batch):
        seen.append((batch.response.shape[1], batch.response_mask.sum(axis=1)))
        return seen[-1][1]

    found = in_batches(narrow, tokens, score, per_token=False)
    np.testing.assert_array_equal(found, lengths)
    assert [width for width, _ in seen] == [8, response]
    np.testing.assert_array_equal(seen[0][1], [3, 5, 7, 8])
    found = mean_logps(narrow, params, tokens)
    np.testing.assert_allclose(found, mean_logps(suite, params, tokens), atol=1e-5)


def test_results_per_token_are_as_long_as_the_records(suite, params):
    tokens, score = suite.tokens["retain"], functools.partial(token_stats, suite.model)
    prompts = sorted(tokens.prompt_mask.sum(axis=1))
    narrow = dataclasses.replace(suite, widths=((int(prompts[3]), 8),))
    one, two = (
        in_batches(x, tokens, functools.partial(score, params)) for x in (suite, narrow)
    )
    for x, y in zip(one, two, strict=True):
        assert x.shape == tokens.response.shape
        np.testing.assert_allclose(x, y, atol=1e-4)


@pytest.mark.parametrize("batch_size", [6, 8])
def test_answers_are_the_same_whatever_the_batch_size(suite, params, batch_size):
    tokens = suite.tokens["forget"]
    one = answer(suite, params, tokens)
    other = answer(dataclasses.replace(suite, batch_size=batch_size), params, tokens)
    assert one.text == other.text and one.finished == other.finished
    np.testing.assert_array_equal(one.mask, other.mask)
    np.testing.assert_array_equal(one.tokens, other.tokens)
    assert len(set(one.text)) > 1


def test_answers_are_cut_at_the_limit_and_say_so(suite, params):
    out = answer(suite, params, suite.tokens["forget"])
    assert out.tokens.shape == out.mask.shape == (6, 8)
    eos = suite.tokenizer.eos_id
    for row, keep, ended in zip(out.tokens, out.mask, out.finished):
        assert ended == (eos in row[keep])
        assert ended or keep.all()


def test_owners_score_sums_the_columns_of_the_forget_owners(suite, tiny_inputs):
    kernel, index = suite.judges["attribution_reward"]
    batch = suite.tokens["forget"]
    whole = np.asarray(kernel.score(None, index, batch))
    out = owners_score(kernel, (0, 2), None, index, batch)
    np.testing.assert_allclose(out, whole[:, 0] + whole[:, 2], atol=1e-5)


def test_every_logged_name_is_a_registered_metric_with_values_in_range(judged):
    logs, _ = judged
    for name, log in logs.items():
        metric = METRICS.get(name)
        values = list(log["value_by_index"].values())
        assert list(log["value_by_index"]) == [str(i) for i in range(6)]
        assert all(metric.low <= value <= metric.high for value in values), name
        assert log["agg_value"] == pytest.approx(math.fsum(values) / 6)
    expected = {f"{s}_{k}" for s in SPLITS for k in ("rouge", "probability")}
    expected |= {"attribution_reward", "retrained_likelihood"}
    quality = {"empty", "repeated", "unfinished", "length"}
    assert set(logs) == expected | {f"forget_{name}" for name in quality}


def test_answers_of_every_split_come_back(judged):
    _, given = judged
    assert set(given) == set(SPLITS)
    assert all(len(answers.text) == 6 for answers in given.values())


def test_probability_is_the_exponential_of_the_mean_log_likelihood(
    judged, suite, params
):
    logs, _ = judged
    for split in SPLITS:
        expected = np.exp(mean_logp(suite.model, params, suite.tokens[split]))
        values = list(logs[f"{split}_probability"]["value_by_index"].values())
        np.testing.assert_allclose(values, expected, atol=1e-5)


def test_a_models_own_greedy_answers_are_likely_to_itself(suite, params, judged):
    own = dataclasses.replace(suite, retrained=params)
    logs, _ = evaluate_model(own, params)
    mine = logs["retrained_likelihood"]["agg_value"]
    other = judged[0]["retrained_likelihood"]["agg_value"]
    assert other < mine <= 0.0


def test_without_a_retrained_model_its_likelihood_is_left_out(suite, params):
    logs, _ = evaluate_model(dataclasses.replace(suite, retrained=None), params)
    assert "retrained_likelihood" not in logs and "forget_rouge" in logs


RUN = [name for name in METRICS.names() if METRICS.get(name).compute]


def values_of(log):
    """What a metric says of every row."""
    return list(log["value_by_index"].values())


@pytest.fixture(scope="module")
def in_one_batch(suite, params):
    return evaluate_model(dataclasses.replace(suite, batch_size=6), params)[0]


@pytest.fixture(scope="module")
def backwards(suite, params):
    """The same suite with its rows in another order."""
    rows = np.asarray([3, 5, 0, 4, 1, 2])
    tokens = {split: take(x, rows) for split, x in suite.tokens.items()}
    gold = {split: [x[row] for row in rows] for split, x in suite.gold.items()}
    other = dataclasses.replace(suite, tokens=tokens, gold=gold)
    return rows, evaluate_model(other, params)[0]


@pytest.fixture(scope="module")
def extremes(suite, params):
    """Models that give the gold answers, say nothing, and never come to an end."""

    def judged(texts, mask, *, finished, logp):
        made = Judged(suite, params)
        count = len(texts["forget"])
        vars(made)["answers"] = {
            split: Answers(x.response, mask(x), texts[split], [finished] * count)
            for split, x in suite.tokens.items()
        }
        vars(made)["gold_logps"] = {split: np.full(count, logp) for split in texts}
        return made

    def every(text):
        return {split: [text] * len(rows) for split, rows in suite.gold.items()}

    def whole(tokens):
        return tokens.response_mask

    def none(tokens):
        return np.zeros_like(tokens.response_mask)

    return {
        "gold": judged(suite.gold, whole, finished=True, logp=0.0),
        "silent": judged(every(""), none, finished=True, logp=-200.0),
        "endless": judged(every("no " * 50), whole, finished=False, logp=-9.0),
    }


@pytest.mark.parametrize("name", RUN)
def test_rows_keep_their_values_whatever_the_batch_size(judged, in_one_batch, name):
    if name in judged[0]:
        wanted, found = values_of(judged[0][name]), values_of(in_one_batch[name])
        np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("name", RUN)
def test_rows_keep_their_values_whatever_their_order(judged, backwards, name):
    rows, logs = backwards
    assert (name in logs) == (name in judged[0])
    if name in logs:
        wanted = np.asarray(values_of(judged[0][name]))[rows]
        np.testing.assert_allclose(values_of(logs[name]), wanted, atol=1e-5)


@pytest.mark.parametrize("name", RUN)
def test_values_stay_in_range_for_extreme_answers(extremes, name):
    metric, slack = METRICS.get(name), 1e-6  # float32 probabilities sum to 1 + 1e-7
    for which, one in extremes.items():
        values = metric.compute(one)
        if values is not None:
            log = aggregate(values, which)
            assert len(log["value_by_index"]) == 6
            low, high = metric.low - slack, metric.high + slack
            assert all(low <= value <= high for value in values_of(log)), which


@pytest.mark.parametrize("name", RUN)
def test_gold_answers_are_not_worse_than_silence(extremes, name):
    metric = METRICS.get(name)
    if metric.group == "attribution" or metric.direction == "closer":
        return  # to say what the owners said is no merit there
    gold, silent = (metric.compute(extremes[which]) for which in ("gold", "silent"))
    sign = 1.0 if metric.direction == "higher" else -1.0
    assert sign * np.mean(gold) >= sign * np.mean(silent)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_metric_that_is_no_number_is_named(suite, params, monkeypatch, bad):
    broken = dataclasses.replace(
        METRICS.get("forget_empty"), compute=lambda judged: [0.0, bad]
    )
    only = {"forget_empty": broken}
    monkeypatch.setattr(METRICS, "_entries", only)
    monkeypatch.setattr(METRICS, "_about", {"forget_empty": ""})
    with pytest.raises(UserError, match=r"metric forget_empty: .* at index 1 of 2"):
        evaluate_model(suite, params)
