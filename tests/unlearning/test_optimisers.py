"""Optimisers of PPO and of distillation, apart and shared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.config import build_config
from dareu_jax.errors import UserError
from dareu_jax.training.optimiser import WithMasters, moments_of, optimiser_of, updated
from dareu_jax.unlearning.dareu_options import DareuConfig
from dareu_jax.unlearning.optimisers import (
    Optimisers,
    distiller_of,
    of_state,
    ppo_updates,
    to_state,
)

SEPARATE = {"retain_step": "separate", "learning_rate": 0.01, "clip_norm": 100.0}


def steps_apart(dtype, lambda_dis=2.0, count=3):
    """Parameters after PPO's and distillation's steps in turn, and their state."""
    hp = DareuConfig(**SEPARATE, lambda_dis=lambda_dis)
    params = {"kernel": jnp.ones((2, 2), dtype)}
    optimiser = optimiser_of(hp, count, decay=False)
    both = Optimisers(
        optimiser.init(params), moments_of(distiller_of(hp, count).init(params))
    )
    for _ in range(count):
        away = {"kernel": jnp.full((2, 2), 1.0, dtype)}
        back = {"kernel": jnp.full((2, 2), -0.25, dtype)}
        params, ppo = updated(optimiser, params, both.ppo, away)
        both = both._replace(ppo=ppo)
        params, state = updated(optimiser, params, both.of_distillation, back)
        both = both.distilled(state)
    return params, both


def test_each_loss_has_moments_of_its_own_and_lambda_is_the_length_of_a_step():
    """Constant gradients: Adam steps by the learning rate, here -.01 and +.02."""
    params, both = steps_apart(jnp.float32)
    np.testing.assert_allclose(params["kernel"], 1.0 + 3 * (0.02 - 0.01), rtol=1e-5)
    shares = 1.0 - 0.9**3  # of a constant gradient that its running mean has
    np.testing.assert_allclose(both.ppo.mu["kernel"], shares, rtol=1e-5)
    np.testing.assert_allclose(both.distil.mu["kernel"], -0.25 * shares, rtol=1e-5)
    assert int(both.ppo.done) == int(both.distil.done) == 3
    params, _ = steps_apart(jnp.float32, lambda_dis=0.5)
    np.testing.assert_allclose(params["kernel"], 1.0 + 3 * (0.005 - 0.01), rtol=1e-5)


def test_both_step_on_the_same_masters():
    """A step of one is not undone by the other, whose master would be behind."""
    wide, _ = steps_apart(jnp.float32)
    params, both = steps_apart(jnp.bfloat16)
    assert isinstance(both.ppo, WithMasters)
    np.testing.assert_allclose(both.ppo.masters["kernel"], wide["kernel"], rtol=1e-6)
    np.testing.assert_array_equal(
        params["kernel"], both.ppo.masters["kernel"].astype(jnp.bfloat16)
    )


def test_a_shared_optimiser_is_kept_as_one():
    hp = DareuConfig()
    assert distiller_of(hp, 3) is None
    state = optimiser_of(hp, 3).init({"kernel": jnp.ones((2, 2))})
    both = of_state(state)
    assert both.of_distillation is state and to_state(both) is state
    apart = Optimisers(state, moments_of(state))
    assert to_state(of_state(apart)) is apart
    assert len(jax.tree.leaves(to_state(both.distilled(state)))) == 8


@pytest.mark.parametrize(
    ("changes", "parts", "updates"),
    [
        ({}, 1, 20 * 2),
        ({"retain_updates": 3}, 1, 20 * 4),
        ({"retain_step": "separate"}, 1, 20),
        ({"retain_step": "joint"}, 1, 20),
        ({"minibatches": 4}, 4, 20 * 5),
        ({"minibatches": 4, "batch_size": 30}, 3, 20 * 4),  # 4 divides no 30
        ({"minibatches": 4, "batch_size": 7}, 1, 20 * 2),
        ({"minibatches": 4, "batch_size": 2}, 2, 20 * 3),
        ({"minibatches": 4, "minibatch_size": 16}, 2, 20 * 3),
        ({"minibatches": 4, "batch_size": 15, "samples_per_prompt": 2}, 3, 20 * 4),
        # a joint step reads a part of the retain batch too
        ({"minibatches": 4, "retain_step": "joint"}, 4, 20 * 4),
        (
            {"minibatches": 4, "retain_step": "joint", "retain_batch_size": 18},
            2,
            20 * 2,
        ),
    ],
)
def test_updates_of_a_pass_are_counted(changes, parts, updates):
    hp = DareuConfig(**changes)
    assert hp.updates_per_pass == parts and ppo_updates(hp) == updates
    assert hp.rows_per_update * parts == hp.answers


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"retain_updates": 2}, r"retain_updates = 2; set it to 1"),
        (
            {"minibatch_size": 8, "retain_batch_size": 6},
            r"minibatch_size = 8 makes 4 .*must divide dareu\.retain_batch_size = 6",
        ),
    ],
)
def test_what_a_joint_step_cannot_be_is_refused(changes, said):
    with pytest.raises(UserError, match=said):
        build_config({"dareu": {"retain_step": "joint", **changes}})
