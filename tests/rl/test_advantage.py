"""Returns and advantages against hand-worked sequences and a plain loop."""

import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.rl import gae, group_advantage, masked_mean, whiten

LENGTHS = np.array([9, 1, 5, 8])
MASK = np.arange(9)[None] < LENGTHS[:, None]
RNG = np.random.default_rng(0)
REWARDS = RNG.normal(size=(4, 9)).astype(np.float32)
VALUES = RNG.normal(size=(4, 9)).astype(np.float32)


def f32(values):
    return jnp.asarray(values, jnp.float32)


def loop_returns(rewards, gamma):
    out = np.zeros(REWARDS.shape)
    for b, length in enumerate(LENGTHS):
        for t in range(length):
            out[b, t] = sum(gamma ** (u - t) * rewards[b, u] for u in range(t, length))
    return out


def loop_gae(rewards, values, gamma, lam):
    out = np.zeros(REWARDS.shape)
    for b, length in enumerate(LENGTHS):
        for t in range(length):
            for u in range(t, length):
                after = values[b, u + 1] if u + 1 < length else 0.0
                delta = rewards[b, u] + gamma * after - values[b, u]
                out[b, t] += (gamma * lam) ** (u - t) * delta
    return out


def test_gae_of_a_hand_worked_sequence():
    rewards, values = f32([[0.5, 0.25, 1.0]]), f32([[0.2, 0.4, 0.6]])
    advantages, returns = gae(rewards, values, jnp.ones((1, 3), bool), 0.5, 0.5)
    # deltas: .5 + .2 - .2 = .5; .25 + .3 - .4 = .15; 1 - .6 = .4
    expected = [[0.5 + 0.25 * 0.25, 0.15 + 0.25 * 0.4, 0.4]]
    np.testing.assert_allclose(advantages, expected, rtol=1e-6)
    np.testing.assert_allclose(returns, np.add(expected, values), rtol=1e-6)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (0.97, 0.0)])
def test_gae_matches_a_plain_loop(gamma, lam):
    advantages, returns = gae(f32(REWARDS), f32(VALUES), jnp.asarray(MASK), gamma, lam)
    expected = loop_gae(REWARDS, VALUES, gamma, lam)
    assert advantages.dtype == returns.dtype == jnp.float32
    np.testing.assert_allclose(advantages, expected, atol=1e-5)
    np.testing.assert_allclose(
        returns, np.where(MASK, expected + VALUES, 0.0), atol=1e-5
    )


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_gae_with_lambda_one_gives_the_discounted_returns(gamma):
    mask = jnp.asarray(MASK)
    advantages, returns = gae(f32(REWARDS), f32(VALUES), mask, gamma, 1.0)
    plain = loop_returns(REWARDS, gamma)
    np.testing.assert_allclose(returns, plain, atol=1e-5)
    np.testing.assert_allclose(
        jnp.where(mask, advantages + VALUES, 0.0), plain, atol=1e-5
    )


@pytest.mark.parametrize("junk", [0.0, 1e6, np.nan])
def test_content_of_the_padding_does_not_matter(junk):
    mask = jnp.asarray(MASK)
    rewards, values = (f32(np.where(MASK, x, junk)) for x in (REWARDS, VALUES))
    for spoiled, clean in zip(
        gae(rewards, values, mask, 0.9, 0.95),
        gae(f32(REWARDS), f32(VALUES), mask, 0.9, 0.95),
    ):
        np.testing.assert_array_equal(spoiled, clean)
        assert np.all(np.asarray(spoiled)[~MASK] == 0.0)
    np.testing.assert_array_equal(whiten(rewards, mask), whiten(f32(REWARDS), mask))


def test_integer_rewards_are_refused():
    ones, mask = jnp.ones((1, 3), jnp.int32), jnp.ones((1, 3), bool)
    with pytest.raises(AssertionError):
        gae(ones, f32([[0.1, 0.2, 0.3]]), mask, 1.0, 0.95)
    with pytest.raises(AssertionError):
        whiten(ones, mask)


def test_masked_mean_counts_only_true_entries():
    x, mask = f32([[0.5, 2.0, 7.0]]), jnp.array([[True, True, False]])
    assert float(masked_mean(x, mask)) == pytest.approx(1.25)
    assert float(masked_mean(x, jnp.zeros_like(mask))) == 0.0


def test_whitened_entries_have_mean_zero_and_deviation_one():
    out = np.asarray(whiten(f32(3.0 * REWARDS + 5.0), jnp.asarray(MASK)))
    assert out[MASK].mean() == pytest.approx(0.0, abs=1e-5)
    assert out[MASK].std() == pytest.approx(1.0, abs=1e-4)
    assert np.all(out[~MASK] == 0.0)


def test_whitening_equal_entries_gives_zeros():
    mask = jnp.array([[True, True, False]])
    np.testing.assert_array_equal(
        whiten(f32([[0.5, 0.5, 0.9]]), mask), np.zeros((1, 3))
    )


GROUPED = f32([1.0, 2.0, 3.0, 0.0, 0.0, 6.0])
GROUPED_MASK = jnp.asarray([[True, True]] * 3 + [[True, False]] * 3)


def test_group_advantage_of_two_hand_worked_groups():
    # means 2 and 2; sds with G - 1: 1 and sqrt((4 + 4 + 16) / 2) = 12 ** 0.5
    out = group_advantage(GROUPED, GROUPED_MASK, 3, eps=0.0)
    second = np.array([-2.0, -2.0, 4.0]) / 12**0.5
    expected = [[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0], *([x, 0.0] for x in second)]
    np.testing.assert_allclose(out, expected, atol=1e-6)
    assert out.dtype == jnp.float32


def test_group_advantage_without_scale_is_the_distance_to_the_mean():
    out = group_advantage(GROUPED, GROUPED_MASK, 3, scale=False)
    np.testing.assert_allclose(out[:, 0], [-1.0, 0.0, 1.0, -2.0, -2.0, 4.0])


def test_group_advantage_adds_eps_to_the_sd():
    out = group_advantage(GROUPED, GROUPED_MASK, 3, eps=1.0)
    np.testing.assert_allclose(out[:3, 0], [-0.5, 0.0, 0.5], atol=1e-6)


def test_group_advantage_of_equal_rewards_is_zero():
    out = group_advantage(f32([0.3] * 4), jnp.ones((4, 2), bool), 4)
    np.testing.assert_allclose(out, 0.0, atol=1e-3)


@pytest.mark.parametrize("size", [1, 4])
def test_group_advantage_refuses_groups_that_say_nothing(size):
    with pytest.raises(ValueError, match=f"6 responses in groups of {size}"):
        group_advantage(GROUPED, GROUPED_MASK, size)


def test_group_advantage_refuses_integer_rewards():
    with pytest.raises(AssertionError):
        group_advantage(jnp.arange(6), GROUPED_MASK, 3)
