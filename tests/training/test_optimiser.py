"""AdamW is optax's, in one pass; bfloat16 parameters are trained as float32 ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dareu_jax.config import ModelConfig
from dareu_jax.models import Decoder, decoder_config
from dareu_jax.parallel import make_mesh, shardings_for
from dareu_jax.training.finetune import finetune_step, init_training
from dareu_jax.training.optimiser import (
    WithMasters,
    make_optimiser,
    make_schedule,
    updated,
)

STEPS, RATE = 12, 1e-5
SHAPES = {"embed": {"embedding": (64, 32)}, "final_norm": {"scale": (32,)}}


def tree(seed, scale, offset=0.0):
    """Normal numbers by path, each of which bfloat16 can hold."""
    rng = np.random.default_rng(seed)
    drawn = jax.tree.map(
        lambda shape: rng.normal(0.0, scale, shape) + offset,
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    drawn["final_norm"]["scale"] = 1.0 + drawn["final_norm"]["scale"]
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), drawn)


def wide(params):
    return jax.tree.map(lambda x: x.astype(jnp.float32), params)


def trained(params, optimiser=None, steps=STEPS):
    """Parameters and state after ``steps`` with the same gradients for all."""
    optimiser = optimiser or make_optimiser(RATE, steps, weight_decay=0.01, decay=False)
    state = optimiser.init(params)
    update = jax.jit(lambda *given: updated(optimiser, *given))
    for step in range(steps):
        grads = wide(tree(1, 1.0)) if step % 3 else wide(tree(100 + step, 0.1))
        own = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)
        params, state = update(params, state, own)
    return params, state


@pytest.fixture(scope="module")
def both():
    """The start, and what bfloat16 and float32 parameters are after the same steps."""
    start = tree(0, 0.02)
    return start, trained(start), trained(wide(start))


def moved(before, after):
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    changed = [np.asarray(x != y).ravel() for x, y in pairs]
    return np.concatenate(changed).mean()


def test_bfloat16_parameters_are_those_of_float32_rounded(both):
    _, (low, state), (full, _) = both
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), full)
    for own, wanted in zip(*map(jax.tree.leaves, (low, rounded)), strict=True):
        assert own.dtype == jnp.bfloat16
        own, wanted = (np.asarray(x, np.float32) for x in (own, wanted))
        np.testing.assert_allclose(own, wanted, rtol=2.0**-7, atol=0)
        assert (own == wanted).mean() > 0.99  # gradients are rounded, a tie may flip
    masters = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state.masters)
    assert moved(low, masters) == 0.0


def test_as_many_entries_move_as_in_float32(both):
    start, (low, _), (full, _) = both
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), full)
    share = moved(start, rounded)
    assert share > 0.5 and moved(start, low) == pytest.approx(share, abs=0.01)


def test_without_masters_most_entries_stay():
    """What the masters are for: each step rounds back to where it began."""
    start = tree(0, 0.02)
    params, optimiser = start, optax.adamw(RATE)
    state = optimiser.init(start)
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(STEPS):
            updates, state = optimiser.update(tree(1, 1.0), state, params)
            params = optax.apply_updates(params, updates)
    assert moved(start, params) < 0.3


def test_optax_alone_leads_to_the_same_parameters(both):
    start = both[0]
    optimiser = make_optimiser(RATE, STEPS, weight_decay=0.01, decay=False)
    state, grads = optimiser.init(start), tree(1, 1.0)
    updates, after = optimiser.update(grads, state, start)
    with jax.numpy_dtype_promotion("standard"):
        params = optax.apply_updates(start, updates)
    masters = jax.tree.map(lambda x: x.astype(jnp.bfloat16), after.masters)
    assert moved(params, masters) == 0.0


SCHEDULES = {
    "constant": ({"decay": False}, optax.constant_schedule(0.01)),
    "decay": ({}, optax.cosine_decay_schedule(0.01, STEPS)),
    "both": (
        {"warmup": 0.25},
        optax.warmup_cosine_decay_schedule(0.0, 0.01, STEPS // 4, STEPS),
    ),
    "warm-up": (
        {"warmup": 0.5, "decay": False},
        optax.linear_schedule(0.0, 0.01, STEPS // 2),
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("norm", [1.0, 1e9])
def test_float32_parameters_are_those_of_optax(name, norm):
    changes, schedule = SCHEDULES[name]
    start, is_matrix = wide(tree(0, 0.02)), {"embedding": True, "scale": False}
    plain = optax.chain(
        optax.clip_by_global_norm(norm),
        optax.adamw(
            schedule,
            weight_decay=0.1,
            mask=lambda params: {
                k: {n: is_matrix[n] for n in params[k]} for k in params
            },
        ),
    )
    inner = optax.GradientTransformation(plain.init, in_standard(plain.update))
    own = make_optimiser(0.01, STEPS, weight_decay=0.1, clip_norm=norm, **changes)
    wanted, (found, state) = trained(start, inner)[0], trained(start, own)
    assert not isinstance(state, WithMasters) and int(state.done) == STEPS
    for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    rates = make_schedule(0.01, STEPS, **changes)
    for step in (0, 1, 5, STEPS - 1, STEPS, 2 * STEPS):
        np.testing.assert_allclose(rates(step), schedule(step), rtol=1e-5, atol=1e-9)


def test_recipes_share_a_program_and_keep_their_numbers():
    start, grads = wide(tree(0, 0.02)), wide(tree(1, 1.0))
    step = jax.jit(updated, static_argnums=0)
    rates, moves = (1e-3, 2e-3), []
    for rate, steps in zip(rates, (10, 20), strict=True):
        optimiser = make_optimiser(rate, steps, decay=False)
        params, _ = step(optimiser, start, optimiser.init(start), grads)
        moves.append(params["embed"]["embedding"] - start["embed"]["embedding"])
    assert step._cache_size() == 1
    np.testing.assert_allclose(moves[1], 2 * moves[0], rtol=1e-3, atol=1e-7)
    assert make_optimiser(1.0, 1) != optax.adam(1.0)


def test_an_update_writes_in_place_and_keeps_nothing_beside(optimised):
    """No copy of gradients or moments: it would be as large as the parameters."""
    start = {"embed": {"embedding": jnp.ones((512, 64))}}
    optimiser = make_optimiser(RATE, STEPS, weight_decay=0.1, warmup=0.5)
    step = jax.jit(updated, static_argnums=0, donate_argnums=(1, 2))
    compiled = step.lower(optimiser, start, optimiser.init(start), start).compile()
    size, found = start["embed"]["embedding"].nbytes, compiled.memory_analysis()
    assert found.alias_size_in_bytes >= 3 * size
    assert found.temp_size_in_bytes < 0.1 * size


def in_standard(update):
    def own(*given):
        with jax.numpy_dtype_promotion("standard"):
            return update(*given)

    return own


def test_only_low_parameters_have_a_master_and_all_states_are_float32():
    mixed = tree(0, 0.02)
    mixed["final_norm"] = wide(mixed["final_norm"])
    state = make_optimiser(RATE, 1).init(mixed)
    assert state.masters["final_norm"]["scale"] is None
    floats = [x for x in jax.tree.leaves(state) if x.ndim]
    assert all(x.dtype == jnp.float32 for x in floats)
    params, after = trained(mixed)
    assert params["final_norm"]["scale"].dtype == jnp.float32
    assert jax.tree.structure(after) == jax.tree.structure(state)
    mesh = make_mesh(data=1, fsdp=4, tensor=2)
    places = shardings_for(jax.eval_shape(lambda: state), mesh)
    assert places.masters["embed"]["embedding"].spec == jax.P("tensor", "fsdp")


def test_a_decoder_of_bfloat16_is_fine_tuned(tiny_run):
    cfg = decoder_config(ModelConfig(preset="decoder-40k"), 300)
    model = Decoder(dataclasses.replace(cfg, layers=1, param_dtype="bfloat16"))
    optimiser = make_optimiser(RATE, 4, decay=False)
    state = init_training(model, optimiser, key=jax.random.key(0))
    before = jax.tree.map(jnp.copy, state.params)
    batch = tiny_run.tokens(tiny_run.split.forget)
    for _ in range(8):
        state, metrics = finetune_step(
            model, optimiser, state, {}, batch, key=jax.random.key(1)
        )
    assert np.isfinite(float(metrics["loss"]))
    layers = [tree["layers"]["mlp"]["up"] for tree in (before, state.params)]
    assert layers[1]["kernel"].dtype == jnp.bfloat16
    masters = state.opt_state.masters["layers"]["mlp"]["up"]
    assert moved(wide(layers[0]), masters) > 0.99  # every small step is kept
