"""Reward shaping against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.rl import (
    chi,
    kappa_of,
    on_last_token,
    prior_bonus,
    running_mean,
    segment_length,
    segment_scores,
    token_rewards,
)

SHAPES = ("paper", "token", "sequence", "potential")
FULL_CHARGE = 1.0 - np.exp(-1.05)  # .65006: the score from which chi is -1


def f32(values):
    return jnp.asarray(values, jnp.float32)


def mask_of(lengths, width):
    return jnp.arange(width)[None] < jnp.asarray(lengths)[:, None]


@pytest.mark.parametrize(
    ("score", "penalty"),
    [(0.1, -0.1003), (0.25, -0.2740), (0.5, -0.6601), (0.65007, -1.0), (1.0, -1.0)],
)
def test_chi_takes_the_papers_values(score, penalty):
    assert float(chi(f32(score))) == pytest.approx(penalty, abs=1e-4)


def test_chi_of_zero_is_zero_up_to_eps():
    assert -1e-5 < float(chi(f32(0.0))) <= 0.0


def test_chi_is_above_minus_one_just_below_the_full_charge():
    just_below = float(chi(f32(FULL_CHARGE - 1e-4)))
    assert -1.0 < just_below < -0.999


def test_chi_is_exactly_minus_one_from_the_full_charge_up():
    scores = f32([FULL_CHARGE + 1e-5, 0.7, 0.9, 0.999999, 1.0])
    np.testing.assert_array_equal(chi(scores), -np.ones(5, np.float32))


def test_chi_decreases_with_the_score_and_stays_in_range():
    penalties = np.asarray(chi(jnp.linspace(0.0, 1.0, 101)))
    assert np.all(np.diff(penalties) <= 0.0)
    assert penalties.min() == -1.0 and penalties.max() <= 0.0


def test_chi_gradient_follows_the_formula_below_and_is_flat_above():
    slope = jax.vmap(jax.grad(chi))(f32([0.2, 0.5, 0.66, 0.8, 1.0]))
    expected = [-1 / (0.8 * 1.05), -1 / (0.5 * 1.05), 0.0, 0.0, 0.0]
    np.testing.assert_allclose(slope, expected, rtol=1e-5)


def test_chi_scale_sets_where_the_penalty_saturates():
    assert float(chi(f32(0.5), c_seg=2.0)) == pytest.approx(np.log(0.5) / 2.0, abs=1e-6)
    assert float(chi(f32(0.5), c_seg=0.5)) == -1.0


def test_segment_scores_repeat_the_score_at_the_segment_end():
    scores = f32([[0.11, 0.22, 0.33, 0.44, 0.55, 0.66, 0.77]] * 3)
    mask = mask_of([7, 1, 5], 7)  # kappa = 3 divides neither 7 nor 5
    expected = [
        [0.33, 0.33, 0.33, 0.66, 0.66, 0.66, 0.77],
        [0.11, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [0.33, 0.33, 0.33, 0.55, 0.55, 0.0, 0.0],
    ]
    np.testing.assert_allclose(segment_scores(scores, mask, 3), expected, rtol=1e-6)


def test_every_answer_may_have_a_kappa_of_its_own():
    """Two slices of 7, 1, 5 and 0 tokens: kappa 4, 1, 3, and 1 where nothing is."""
    mask = mask_of([7, 1, 5, 0], 7)
    kappa = kappa_of(mask, 2, None)
    np.testing.assert_array_equal(kappa, [4, 1, 3, 1])
    scores = f32([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]] * 4)
    expected = [
        [0.4, 0.4, 0.4, 0.4, 0.7, 0.7, 0.7],
        [0.1, 0, 0, 0, 0, 0, 0],
        [0.3, 0.3, 0.3, 0.5, 0.5, 0, 0],
        [0] * 7,
    ]
    np.testing.assert_allclose(segment_scores(scores, mask, kappa), expected, rtol=1e-6)
    # of the longest answer that there can be, 9 tokens, it is 5 for all
    assert kappa_of(mask, 2, 9) == 5
    longest = segment_scores(scores, mask, 5)
    np.testing.assert_allclose(longest[0], [0.5] * 5 + [0.7] * 2, rtol=1e-6)
    np.testing.assert_allclose(longest[2, :5], [0.5] * 5, rtol=1e-6)


def test_segment_scores_with_one_token_per_segment_are_the_scores():
    scores, mask = f32([[0.2, 0.4, 0.9]] * 2), mask_of([3, 2], 3)
    expected = [[0.2, 0.4, 0.9], [0.2, 0.4, 0.0]]
    np.testing.assert_allclose(segment_scores(scores, mask, 1), expected, rtol=1e-6)


@pytest.mark.parametrize("kappa", [3, 4, 50])
def test_segment_scores_with_one_segment_take_the_whole_response(kappa):
    scores, mask = f32([[0.2, 0.4, 0.9]] * 2), mask_of([3, 2], 3)
    expected = [[0.9, 0.9, 0.9], [0.4, 0.4, 0.0]]
    np.testing.assert_allclose(segment_scores(scores, mask, kappa), expected, rtol=1e-6)


def test_segment_scores_ignore_scores_after_the_response():
    mask = mask_of([2, 4, 5], 5)
    scores = f32(np.random.default_rng(0).uniform(size=(3, 5)))
    spoiled = jnp.where(mask, scores, jnp.nan)
    np.testing.assert_array_equal(
        segment_scores(spoiled, mask, 2), segment_scores(scores, mask, 2)
    )


def test_segment_scores_of_an_empty_response_are_zero():
    out = segment_scores(f32([[0.3, 0.4]]), jnp.zeros((1, 2), bool), 2)
    np.testing.assert_array_equal(out, np.zeros((1, 2)))


def test_running_mean_averages_the_tokens_so_far():
    x = f32([[-0.5, -0.25, -0.75, -0.1]] * 3)
    expected = [
        [-0.5, -0.375, -0.5, -0.4],
        [-0.5, 0.0, 0.0, 0.0],
        [-0.5, -0.375, -0.5, 0.0],
    ]
    out = running_mean(x, mask_of([4, 1, 3], 4))
    np.testing.assert_allclose(out, expected, rtol=1e-6)


# chi of the prefixes of three responses of 4, 1 and 3 tokens; junk after the end
PENALTY = [[-0.2, -0.4, -0.9, -0.5], [-0.7, -9.0, -9.0, -9.0], [-0.1, -0.3, -0.2, -9.0]]
LENGTHS = [4, 1, 3]
EXPECTED = {
    "paper": [[-0.2, -0.3, -0.5, -0.5], [-0.7, 0.0, 0.0, 0.0], [-0.1, -0.2, -0.2, 0.0]],
    "token": [[-0.2, -0.4, -0.9, -0.5], [-0.7, 0.0, 0.0, 0.0], [-0.1, -0.3, -0.2, 0.0]],
    "sequence": [[0.0, 0.0, 0.0, -0.5], [-0.7, 0.0, 0.0, 0.0], [0.0, 0.0, -0.2, 0.0]],
    "potential": [
        [-0.2, -0.2, -0.5, 0.4],
        [-0.7, 0.0, 0.0, 0.0],
        [-0.1, -0.2, 0.1, 0.0],
    ],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_token_rewards_match_the_numbers_worked_out_by_hand(shape):
    rewards = token_rewards(f32(PENALTY), mask_of(LENGTHS, 4), shape)
    assert rewards.dtype == jnp.float32
    np.testing.assert_allclose(rewards, EXPECTED[shape], atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_token_rewards_are_the_same_under_jit(shape):
    mask = mask_of(LENGTHS, 4)
    out = jax.jit(token_rewards, static_argnums=2)(f32(PENALTY), mask, shape)
    np.testing.assert_allclose(out, EXPECTED[shape], atol=1e-6)


@pytest.mark.parametrize("shape", ["sequence", "potential"])
@pytest.mark.parametrize("kappa", [1, 3, 4, 11])
def test_whole_response_shapes_sum_to_chi_of_the_last_prefix(shape, kappa):
    lengths = np.arange(1, 12)
    scores = f32(np.random.default_rng(1).uniform(0.02, 0.6, (11, 11)))
    mask = mask_of(lengths, 11)
    penalty = chi(segment_scores(scores, mask, kappa))
    total = jnp.sum(token_rewards(penalty, mask, shape), axis=1)
    last = chi(scores[jnp.arange(11), lengths - 1])
    np.testing.assert_allclose(total, last, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_rewards_of_fractional_scores_stay_fractional(shape):
    mask = mask_of([6, 1, 4], 6)
    scores = f32(np.random.default_rng(2).uniform(0.1, 0.5, (3, 6)))
    rewards = token_rewards(chi(segment_scores(scores, mask, 1)), mask, shape)
    nonzero = np.asarray(rewards)[np.asarray(rewards) != 0.0]
    assert rewards.dtype == jnp.float32
    assert nonzero.size >= 3
    assert np.all(np.abs(nonzero - np.round(nonzero)) > 1e-6)


def test_integer_input_is_refused():
    ones, mask = jnp.ones((1, 3), jnp.int32), jnp.ones((1, 3), bool)
    for call in (
        lambda: chi(jnp.int32(1)),
        lambda: segment_scores(ones, mask, 1),
        lambda: running_mean(ones, mask),
        lambda: on_last_token(ones, mask),
        lambda: prior_bonus(ones, mask, 4.0),
    ):
        with pytest.raises(AssertionError):
            call()


@pytest.mark.parametrize("shape", ["paper", "sequence", "potential", "token"])
def test_integer_penalties_are_refused_by_every_reward_shape(shape):
    with pytest.raises(AssertionError):
        token_rewards(jnp.ones((1, 3), jnp.int32), jnp.ones((1, 3), bool), shape)


def test_an_unknown_reward_shape_is_an_error():
    with pytest.raises(KeyError, match="papr"):
        token_rewards(f32([[0.1]]), jnp.ones((1, 1), bool), "papr")


def test_running_mean_of_log_likelihoods_averages_every_prefix():
    out = running_mean(f32([[-1.0, -3.0, -0.5]]), mask_of([3], 3))
    np.testing.assert_allclose(out, [[-1.0, -2.0, -1.5]], rtol=1e-6)


def test_prior_bonus_falls_from_one_to_zero_at_the_floor():
    logps = f32([[-1.0, -3.0, -6.5, -15.5], [-0.0, -0.5, 0.0, 0.0]])
    mask = mask_of([4, 2], 4)
    # prefix means: -1, -2, -3.5, -6.5 and 0, -.25; bonus = 1 + mean / 4 in [0, 1]
    expected = [[0.75, 0.5, 0.125, 0.0], [1.0, 0.9375]]
    out = np.asarray(prior_bonus(logps, mask, 4.0))
    np.testing.assert_allclose(out[0], expected[0], atol=1e-6)
    np.testing.assert_allclose(out[1, :2], expected[1], atol=1e-6)


@pytest.mark.parametrize(
    ("tokens", "slices", "kappa"),
    [(30, 15, 2), (31, 15, 3), (15, 15, 1), (7, 15, 1), (64, 1, 64)],
)
def test_segment_length_rounds_up_and_is_at_least_one(tokens, slices, kappa):
    assert segment_length(tokens, slices) == kappa
