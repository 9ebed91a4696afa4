"""Losses against float64 NumPy writings, gradients against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.rl import (
    clip_fraction,
    cross_entropy,
    full_kl,
    masked_mean,
    mixed,
    policy_loss,
    sampled_kl,
    value_loss,
)

CLIP = 0.2
MASK = np.arange(6)[None] < np.array([6, 1, 4])[:, None]
RNG = np.random.default_rng(0)
OLD_LOGPS = RNG.uniform(-4.0, -0.5, (3, 6))
LOGPS = OLD_LOGPS + RNG.normal(0.0, 0.4, (3, 6))
ADVANTAGES = RNG.normal(size=(3, 6))
OLD_VALUES = RNG.normal(size=(3, 6))
VALUES = OLD_VALUES + RNG.normal(0.0, 0.4, (3, 6))
RETURNS = RNG.normal(size=(3, 6))
LOGITS = 2.0 * RNG.normal(size=(3, 6, 5))
REF_LOGITS = 2.0 * RNG.normal(size=(3, 6, 5))


def f32(values):
    return jnp.asarray(values, jnp.float32)


def mean(x):
    return x[MASK].mean()


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def plain_policy(logps):
    ratio = np.exp(logps - OLD_LOGPS)
    clipped = np.clip(ratio, 1 - CLIP, 1 + CLIP)
    return -mean(np.minimum(ratio * ADVANTAGES, clipped * ADVANTAGES))


def plain_value(values):
    near = np.clip(values, OLD_VALUES - CLIP, OLD_VALUES + CLIP)
    return 0.5 * mean(np.maximum((values - RETURNS) ** 2, (near - RETURNS) ** 2))


def plain_kl(logits, anchor):
    p, q = log_softmax(logits), log_softmax(anchor)
    return (np.exp(p) * (p - q)).sum(-1)


def plain_distillation(logits):
    return mean(plain_kl(REF_LOGITS, logits))


def plain_cross_entropy(logps):
    return -mean(logps)


M = jnp.asarray(MASK)
CASES = {
    "policy": (
        lambda x: policy_loss(x, f32(OLD_LOGPS), f32(ADVANTAGES), M, CLIP),
        plain_policy,
        LOGPS,
    ),
    "value": (
        lambda x: value_loss(x, f32(OLD_VALUES), f32(RETURNS), M, CLIP),
        plain_value,
        VALUES,
    ),
    "distillation": (
        lambda x: masked_mean(full_kl(f32(REF_LOGITS), x), M),
        plain_distillation,
        LOGITS,
    ),
    "cross entropy": (lambda x: cross_entropy(x, M), plain_cross_entropy, LOGPS),
}


def finite_differences(f, x, step=1e-6):
    grad = np.zeros_like(x)
    for at in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[at] += step
        down[at] -= step
        grad[at] = (f(up) - f(down)) / (2 * step)
    return grad


def test_the_random_input_clips_on_both_sides_and_avoids_the_kinks():
    ratio, moved = np.exp(LOGPS - OLD_LOGPS), VALUES - OLD_VALUES
    for side in (ratio - 1.0, moved):
        assert np.any(side[MASK] > CLIP) and np.any(side[MASK] < -CLIP)
        assert np.min(np.abs(np.abs(side) - CLIP)) > 1e-3
    assert np.any(MASK & (ratio > 1 + CLIP) & (ADVANTAGES > 0))  # gradient cut
    assert np.any(MASK & (ratio < 1 - CLIP) & (ADVANTAGES < 0))  # gradient cut
    assert np.any(MASK & (ratio > 1 + CLIP) & (ADVANTAGES < 0))  # gradient kept
    near = np.clip(VALUES, OLD_VALUES - CLIP, OLD_VALUES + CLIP)
    gap = (VALUES - RETURNS) ** 2 - (near - RETURNS) ** 2
    assert np.any(gap[MASK] > 1e-3) and np.any(gap[MASK] < -1e-3)


@pytest.mark.parametrize("name", CASES)
def test_loss_matches_its_plain_numpy_writing(name):
    ours, plain, x = CASES[name]
    loss = ours(f32(x))
    assert loss.dtype == jnp.float32 and loss.shape == ()
    np.testing.assert_allclose(loss, plain(x), rtol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_gradient_matches_central_finite_differences(name):
    ours, plain, x = CASES[name]
    expected = finite_differences(plain, x)
    grad = jax.jit(jax.grad(ours))(f32(x))
    np.testing.assert_allclose(grad, expected, rtol=1e-4, atol=1e-6)


def test_policy_gradient_is_cut_where_the_ratio_is_clipped_in_its_favour():
    grad = np.asarray(jax.grad(CASES["policy"][0])(f32(LOGPS)))
    ratio = np.exp(LOGPS - OLD_LOGPS)
    cut = MASK & (
        ((ratio > 1 + CLIP) & (ADVANTAGES > 0))
        | ((ratio < 1 - CLIP) & (ADVANTAGES < 0))
    )
    assert np.all(grad[cut] == 0.0)
    assert np.all(grad[MASK & ~cut] != 0.0)


def test_policy_loss_of_an_unchanged_policy_is_minus_the_mean_advantage():
    same = f32(LOGPS)
    loss = policy_loss(same, same, f32(ADVANTAGES), M, CLIP)
    assert float(loss) == pytest.approx(-mean(ADVANTAGES), abs=1e-6)


def test_clip_fraction_counts_the_tokens_outside_the_band():
    expected = mean((np.abs(np.exp(LOGPS - OLD_LOGPS) - 1.0) > CLIP).astype(float))
    out = clip_fraction(f32(LOGPS), f32(OLD_LOGPS), M, CLIP)
    assert 0.0 < expected < 1.0
    assert float(out) == pytest.approx(expected)


def test_full_kl_matches_its_plain_numpy_writing_and_is_not_symmetric():
    out = full_kl(f32(LOGITS), f32(REF_LOGITS))
    assert out.shape == (3, 6) and out.dtype == jnp.float32
    np.testing.assert_allclose(out, plain_kl(LOGITS, REF_LOGITS), rtol=1e-4, atol=1e-6)
    assert not np.allclose(out, full_kl(f32(REF_LOGITS), f32(LOGITS)), atol=1e-2)


def test_kl_of_a_policy_with_itself_is_zero_and_shifts_do_not_matter():
    logits = f32(LOGITS)
    np.testing.assert_allclose(full_kl(logits, logits + 3.0), 0.0, atol=1e-5)
    np.testing.assert_array_equal(sampled_kl(f32(LOGPS), f32(LOGPS)), np.zeros((3, 6)))


def test_sampled_kl_averages_to_the_full_kl_under_the_policy():
    p, q = log_softmax(LOGITS), log_softmax(REF_LOGITS)
    average = (np.exp(p) * np.asarray(sampled_kl(f32(p), f32(q)))).sum(-1)
    np.testing.assert_allclose(average, plain_kl(LOGITS, REF_LOGITS), atol=1e-5)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("junk", [1e6, np.nan])
def test_padding_changes_neither_loss_nor_gradient(name, junk):
    ours, _, x = CASES[name]
    mask = MASK.reshape(MASK.shape + (1,) * (x.ndim - 2))
    spoiled = f32(np.where(mask, x, junk))
    value_and_grad = jax.value_and_grad(ours)
    loss, grad = value_and_grad(spoiled)
    clean_loss, clean_grad = value_and_grad(f32(x))
    np.testing.assert_allclose(loss, clean_loss, rtol=1e-6)
    inside = np.broadcast_to(mask, x.shape)
    np.testing.assert_allclose(
        np.asarray(grad)[inside], np.asarray(clean_grad)[inside], rtol=1e-6
    )


@pytest.mark.parametrize("name", CASES)
def test_gradient_at_padding_is_zero(name):
    ours, _, x = CASES[name]
    assert np.all(np.asarray(jax.grad(ours)(f32(x)))[~MASK] == 0.0)


def test_integer_input_is_refused():
    ones = jnp.ones((3, 6), jnp.int32)
    for call in (
        lambda: policy_loss(ones, ones, ones, M, CLIP),
        lambda: value_loss(ones, ones, ones, M, CLIP),
        lambda: sampled_kl(ones, ones),
        lambda: full_kl(ones[..., None], ones[..., None]),
        lambda: cross_entropy(ones, M),
    ):
        with pytest.raises(AssertionError):
            call()


def test_arrays_of_different_shape_are_refused():
    with pytest.raises(AssertionError):
        policy_loss(f32(LOGPS), f32(OLD_LOGPS)[:, :5], f32(ADVANTAGES), M, CLIP)
    with pytest.raises(AssertionError):
        value_loss(f32(VALUES), f32(OLD_VALUES), f32(RETURNS)[:2], M, CLIP)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_mixture_mixes_probabilities(share):
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (LOGITS, REF_LOGITS))
    logits, others = (jnp.asarray(x, jnp.float32) for x in (LOGITS, REF_LOGITS))
    found = np.exp(mixed(logits, others, jnp.float32(share)))
    np.testing.assert_allclose(found, (1.0 - share) * p + share * q, rtol=1e-5)


def test_forward_kl_moves_a_policy_that_is_sure_and_reverse_kl_does_not():
    """It says one of five tokens with .9999; the anchor says each of them alike."""
    sure = jnp.asarray([[[13.0, 0.0, 0.0, 0.0, 0.0]]], jnp.float32)
    flat = jnp.zeros_like(sure)
    forward = jax.grad(lambda x: full_kl(flat, x).sum())(sure)
    reverse = jax.grad(lambda x: full_kl(x, flat).sum())(sure)
    assert float(forward[0, 0, 0]) == pytest.approx(0.8, abs=1e-3)  # 1 - 1/5
    assert abs(float(reverse[0, 0, 0])) < 1e-3
