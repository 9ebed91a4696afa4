"""Equations over all likely tokens, against NumPy and by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from dareu_jax.rl import (
    expected_advantage,
    expected_policy_loss,
    gains_of,
    likeliest,
    policy_loss,
    tilted,
)

RNG = np.random.default_rng(0)
LOGITS = 2.0 * RNG.normal(size=(2, 3, 6))
MASK = np.array([[True, True, True], [True, True, False]])


def f32(x):
    return jnp.asarray(x, jnp.float32)


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def test_the_likeliest_tokens_come_first():
    tokens, logps = likeliest(f32(LOGITS), 2)
    order = np.argsort(-LOGITS, axis=-1)[..., :2]
    np.testing.assert_array_equal(tokens, order)
    wanted = np.log(np.take_along_axis(softmax(LOGITS), order, axis=-1))
    np.testing.assert_allclose(logps, wanted, atol=1e-5)


def test_an_action_bears_the_penalty_of_the_text_it_makes():
    chi = f32([[[-0.5, -0.1], [-0.9, -0.2], [-0.3, -0.4]]])
    before = f32([[-0.6, -0.7, -0.8]])
    is_end = jnp.asarray([[[False, False], [False, True], [False, False]]])
    logps = jnp.log(f32([[[0.6, 0.2], [0.5, 0.5], [0.1, 0.1]]]))
    gains, rest = gains_of(chi, before, is_end, logps)
    # Nothing stands before the first place: (.6 * -.5 + .2 * -.1) / .8 = -.4.
    np.testing.assert_allclose(rest, [[-0.4, -0.6, -0.7]], atol=1e-6)
    wanted = [[[-0.5, -0.1], [-0.9, -0.6], [-0.3, -0.4]]]
    np.testing.assert_allclose(gains, wanted, atol=1e-6)


def test_saying_nothing_neither_gains_nor_loses():
    chi, before = f32([[[-1.0, 0.0]]]), f32([[0.0]])
    is_end = jnp.asarray([[[False, True]]])
    gains, rest = gains_of(chi, before, is_end, jnp.log(f32([[[0.9, 0.1]]])))
    np.testing.assert_allclose(gains, [[[-1.0, -1.0]]], atol=1e-6)
    np.testing.assert_allclose(rest, [[-1.0]], atol=1e-6)


def test_the_tilted_policy_is_the_optimum():
    tokens = jnp.asarray([[[1, 4], [0, 2], [5, 3]]] * 2, jnp.int32)
    gains, rest = -RNG.uniform(size=(2, 3, 2)), -RNG.uniform(size=(2, 3))
    found = softmax(np.asarray(tilted(f32(LOGITS), tokens, f32(gains), f32(rest))))
    gain = np.repeat(rest[..., None], 6, axis=-1)
    np.put_along_axis(gain, np.asarray(tokens), gains, axis=-1)
    wanted = softmax(LOGITS) * np.exp(gain)
    np.testing.assert_allclose(found, wanted / wanted.sum(-1, keepdims=True), atol=1e-6)

    def objective(logits):
        p = jax.nn.softmax(logits)
        kl = jnp.log(p) - jax.nn.log_softmax(f32(LOGITS))
        return jnp.sum(p * (gain - kl))

    slope = jax.grad(objective)(jnp.log(f32(found)))
    np.testing.assert_allclose(slope, 0.0, atol=1e-5)


def test_advantages_of_all_actions_have_mean_0():
    old = np.log(softmax(LOGITS))[..., :2]
    gains, rest = RNG.normal(size=(2, 3, 2)), RNG.normal(size=(2, 3))
    found = np.asarray(expected_advantage(f32(gains), f32(rest), f32(old)))
    share = np.concatenate([np.exp(old), 1 - np.exp(old).sum(-1, keepdims=True)], -1)
    np.testing.assert_allclose((share * found).sum(-1), 0.0, atol=1e-6)
    np.testing.assert_allclose(
        found[..., 0] - found[..., 2], gains[..., 0] - rest, atol=1e-6
    )


def test_the_loss_is_the_mean_of_sampled_losses():
    old = f32(np.log(softmax(LOGITS))[..., :2])
    new = f32(np.log(softmax(LOGITS + RNG.normal(size=LOGITS.shape)))[..., :2])
    advantages = f32(RNG.normal(size=(2, 3, 3)))
    found = expected_policy_loss(new, old, advantages, jnp.asarray(MASK), 0.2)
    wanted = 0.0
    whole = [
        np.concatenate([x, np.log(1 - np.exp(x).sum(-1, keepdims=True))], -1)
        for x in (np.asarray(new), np.asarray(old))
    ]
    for b, t in zip(*np.nonzero(MASK), strict=True):
        for a in range(3):
            one = [f32(x[b, t, a]).reshape(1, 1) for x in (*whole, advantages)]
            loss = policy_loss(*one, jnp.ones((1, 1), bool), 0.2)
            wanted += float(np.exp(whole[1][b, t, a]) * loss) / MASK.sum()
    np.testing.assert_allclose(found, wanted, atol=1e-5)
