"""Every check of `dareu doctor` on hand-made scores, and its sentence."""

import numpy as np
import pytest

from dareu_jax.audits.doctor.checks import (
    Check,
    agreement,
    check_batching,
    check_devices,
    check_error,
    check_finite,
    check_padding,
    check_probe,
    check_ranks,
    check_repeat,
    check_saturation,
    exact_limit,
    in_words,
    native_limit,
    padded,
    relative,
    verdict,
)
from dareu_jax.data import TokenBatch

SCORES = np.array([[4.0, 1.0, 2.0], [0.0, -2.0, 1.0]], np.float32)
FILLS = (0, 7)


@pytest.fixture
def queries():
    """Three texts with junk at the pads."""
    return TokenBatch(
        prompt=np.array([[9, 1, 2], [3, 4, 5], [9, 9, 6]], np.int32),
        prompt_mask=np.array([[0, 1, 1], [1, 1, 1], [0, 0, 1]], bool),
        response=np.array([[1, 2], [3, 8], [4, 5]], np.int32),
        response_mask=np.array([[1, 1], [1, 0], [1, 1]], bool),
        index=np.arange(3, dtype=np.int32),
    )


def masked_sum(batch):
    """Scores ``[B, 2]`` that read real tokens alone."""
    answer = (batch.response * batch.response_mask).sum(axis=1)
    return np.stack([answer, -answer], axis=1).astype(np.float32)


def leaky(batch):
    """Scores that read what stands at the pads."""
    return np.stack([batch.prompt.sum(axis=1)] * 2, axis=1).astype(np.float32)


def by_width(batch):
    """Scores that depend on how wide the batch is."""
    return masked_sum(batch) * np.float32(batch.response.shape[1])


def by_neighbours(batch):
    """Scores that depend on the batch's other rows."""
    own = masked_sum(batch)
    return own - own.mean(axis=0)


def by_place(batch):
    """Scores that depend on a row's place in the batch."""
    return masked_sum(batch) + np.arange(len(batch.response), dtype=np.float32)[:, None]


def test_relative_error_is_by_the_largest_score():
    found = SCORES + np.array([[0.0, 0.2, 0.0], [0.0, 0.0, 0.0]], np.float32)
    assert relative(found, SCORES) == pytest.approx(0.2 / 4.0, rel=1e-6)
    assert relative(SCORES, SCORES) == 0.0
    assert relative(np.zeros(3), np.zeros(3)) == 0.0


def test_rank_agreement_is_the_mean_over_queries():
    """The first query's ranks 3 1 2 against 3 2 1: 1 - 6 * 2 / 24 = 0.5."""
    found = np.array([[4.0, 2.0, 1.0], [0.0, -2.0, 1.0]], np.float32)
    assert agreement(found, SCORES) == pytest.approx((0.5 + 1.0) / 2)


def test_equal_scores_agree_even_where_they_are_flat():
    flat = np.zeros((2, 3), np.float32)
    assert agreement(flat, flat) == 1.0
    assert agreement(flat, SCORES) == 0.0


@pytest.mark.parametrize(("gap", "passed"), [(4e-6, True), (6e-6, False)])
def test_the_probe_must_match_the_oracle(gap, passed):
    oracle = np.array([[1.0, 0.5]])
    check = check_probe(oracle + np.array([[gap, 0.0]]), oracle, exact_limit(0.0))
    assert check.passed is passed
    assert check.value == pytest.approx(gap)
    assert check.limit == 5e-6


def test_owners_must_rank_alike_in_a_lower_precision():
    good = check_ranks("bfloat16", SCORES * np.float32(1.01), SCORES)
    assert good.passed and good.value == 1.0 and good.scope == "bfloat16"
    bad = check_ranks("bfloat16", -SCORES, SCORES)
    assert bad.passed is False and bad.value == -1.0
    assert "model.compute_dtype=float32" in bad.remedy


@pytest.mark.parametrize(("factor", "passed"), [(1.09, True), (1.11, False)])
def test_a_lower_precision_may_err_by_a_tenth(factor, passed):
    check = check_error("bfloat16", SCORES * np.float32(factor), SCORES)
    assert check.passed is passed
    assert check.value == pytest.approx(factor - 1.0, rel=1e-4)


def test_float32_that_errs_has_a_remedy_of_its_own():
    check = check_error("float32", SCORES * np.float32(2.0), SCORES)
    assert "JAX_DEFAULT_MATMUL_PRECISION=highest" in check.remedy


@pytest.mark.parametrize(
    ("noise", "limit"),
    [(0.0, 5e-6), (1e-6, 5e-6), (1e-5, 4e-5), (1.0, 1e-3), (np.nan, 5e-6)],
)
def test_the_limit_follows_the_models_own_rounding_within_bounds(noise, limit):
    assert exact_limit(noise) == pytest.approx(limit)


@pytest.mark.parametrize(
    ("error", "limit"), [(0.0, 5e-6), (0.01, 0.02), (5.0, 0.2), (np.nan, 5e-6)]
)
def test_a_coarse_dtype_may_change_scores_by_twice_its_rounding(error, limit):
    reference = np.array([[1.0, 0.0]])
    found = reference + np.array([[error, 0.0]])
    assert native_limit(5e-6, found, reference) == pytest.approx(limit)


def test_pads_are_put_on_the_outside(queries):
    wide = padded(queries, 2, 7)
    assert wide.prompt[0].tolist() == [7, 7, 7, 1, 2]
    assert wide.response[1].tolist() == [3, 7, 7, 7]
    assert wide.prompt_mask.sum() == queries.prompt_mask.sum()
    assert wide.response_mask[1].tolist() == [True, False, False, False]
    assert wide.prompt.dtype == np.int32


def test_padding_that_does_not_leak_passes(queries):
    check = check_padding(masked_sum, queries, FILLS, 5e-6)
    assert check.passed and check.value == 0.0


@pytest.mark.parametrize("score", [leaky, by_width])
def test_padding_that_leaks_fails(queries, score):
    assert check_padding(score, queries, FILLS, 5e-6).passed is False


def test_padding_that_makes_one_width_no_number_fails(queries):
    def breaks(batch):
        wide = batch.response.shape[1] > 10
        return np.full((3, 2), np.nan if wide else 1.0, np.float32)

    check = check_padding(breaks, queries, FILLS, 5e-6)
    assert check.passed is False and np.isnan(check.value)


def test_scores_of_each_text_alone_pass(queries):
    check = check_batching(masked_sum, queries, 5e-6)
    assert check.passed and check.value == 0.0


@pytest.mark.parametrize("score", [by_neighbours, by_place])
def test_scores_that_depend_on_the_batch_fail(queries, score):
    check = check_batching(score, queries, 5e-6)
    assert check.passed is False and "--batch-size 1" in check.remedy


def test_devices_must_agree():
    assert check_devices(SCORES, SCORES, 8, 5e-6).passed
    off = check_devices(SCORES * np.float32(1.001), SCORES, 8, 5e-6)
    assert off.passed is False and off.value == pytest.approx(1e-3, rel=1e-3)
    assert "8 devices" in off.meaning


def test_one_device_is_not_compared():
    lone, large = (check_devices(SCORES, None, n, 5e-6) for n in (1, 8))
    assert lone.passed is None and lone.value is None
    assert lone.meaning == "not run: there is one device"
    assert large.meaning == "not run: one device cannot hold it"


def test_scores_that_are_no_numbers_fail():
    assert check_finite(SCORES).passed
    broken = check_finite(np.array([[np.nan, 1.0], [np.inf, 2.0]]))
    assert broken.passed is False and broken.value == 0.5
    assert check_error("bfloat16", SCORES * np.float32(np.nan), SCORES).passed is False
    assert check_ranks("bfloat16", SCORES * np.float32(np.nan), SCORES).passed is False


def test_the_same_call_must_give_the_same_bits(queries):
    assert check_repeat(masked_sum, queries).passed
    calls = []

    def drifting(batch):
        calls.append(1)
        scores = masked_sum(batch)
        scores[0, 0] += np.float32(1e-6 * len(calls))
        return scores

    check = check_repeat(drifting, queries)
    assert check.passed is False and check.value == 1.0


def test_certain_answers_are_saturated():
    usual = np.full(8, 2.0)
    assert check_saturation(np.full(10, 1e-3), usual).passed
    norms = np.array([1e-5, 1e-5, *[1.0] * 8])
    check = check_saturation(norms, usual)
    assert check.passed is False and check.value == pytest.approx(0.2)
    assert check_saturation(np.full(4, np.nan), usual).passed is False


def made(name, value, limit, passed, sign="<=", scope=""):
    return Check(name, value, limit, passed, "meaning", "do this", sign, scope)


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (made("rank agreement", 0.93, 0.99, False, ">="), "rank agreement 0.93 < 0.99"),
        (made("rank agreement", 1.0, 0.99, True, ">="), "rank agreement 1 >= 0.99"),
        (made("padding", 0.5, 5e-6, False), "padding 0.5 > 5e-06"),
        (made("padding", 0.0, 5e-6, True), "padding 0 <= 5e-06"),
        (made("devices", None, 5e-6, None), "devices meaning"),
    ],
)
def test_a_check_in_words(check, words):
    assert in_words(check) == words


GOOD = made("rank agreement", 0.997, 0.99, True, ">=", "bfloat16")


def test_the_verdict_when_all_is_well():
    checks = [GOOD, made("padding", 0.0, 5e-6, True), made("devices", None, 0.0, None)]
    assert verdict(checks) == (
        "Scores of this model on these devices can be trusted: owners rank alike in "
        "every dtype (0.997), all 2 checks passed, not run: devices."
    )


def test_the_verdict_when_one_dtype_is_too_coarse():
    bad = made("rank agreement", 0.93, 0.99, False, ">=", "bfloat16")
    assert verdict([made("padding", 0.0, 5e-6, True), bad]) == (
        "Scores of this model on these devices cannot be trusted in bfloat16: rank "
        "agreement 0.93 < 0.99; do this."
    )


def test_the_verdict_counts_what_else_failed():
    bad = made("padding", 0.5, 5e-6, False)
    coarse = made("relative error", 0.3, 0.1, False, scope="bfloat16")
    assert verdict([GOOD, bad, coarse, bad]) == (
        "Scores of this model on these devices cannot be trusted: padding 0.5 > 5e-06 "
        "(2 more failed); do this."
    )
