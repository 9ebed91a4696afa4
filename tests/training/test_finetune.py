"""Supervised fine-tuning: what it minimises, what it reads, what it hides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.data import take
from dareu_jax.models import response_logps
from dareu_jax.training import accumulation
from dareu_jax.training.finetune import finetune_step, hide_prompt_tokens, init_training
from dareu_jax.training.optimiser import make_optimiser

pytestmark = pytest.mark.slow

OPTIMISER = make_optimiser(0.003, 20)


@pytest.fixture(scope="module")
def batch(tiny_run):
    return take(tiny_run.tokens(tiny_run.split.forget), np.arange(4))


@pytest.fixture(scope="module")
def model(tiny_run):
    return tiny_run.model


@pytest.fixture
def step(model):
    def run(state, batch, seed=0, prompt_dropout=0.0):
        state, metrics = finetune_step(
            model,
            OPTIMISER,
            state,
            {},
            batch,
            prompt_dropout=prompt_dropout,
            key=jax.random.key(seed),
        )
        return state, float(metrics["loss"])

    return run


@pytest.fixture
def fresh(model):
    start = jax.jit(lambda key: init_training(model, OPTIMISER, key=key))
    return lambda: start(jax.random.key(0))


def test_the_loss_is_the_mean_over_response_tokens(step, fresh, model, batch):
    state = fresh()
    logps = np.asarray(
        jax.jit(response_logps, static_argnums=0)(model, state.params, batch)
    )
    _, loss = step(state, batch)
    assert loss == pytest.approx(-logps[batch.response_mask].mean(), rel=1e-5)


def test_the_loss_falls_and_the_steps_are_counted(step, fresh, batch):
    state, losses = fresh(), []
    for _ in range(10):
        state, loss = step(state, batch)
        losses.append(loss)
    assert losses[-1] < 0.8 * losses[0] and int(state.step) == 10


def test_trainings_of_one_shape_share_a_program(model, batch):
    """Whatever their learning rate and steps, as original and retrained have."""
    before, losses = finetune_step._cache_size(), []
    for rate, steps in ((0.1, 20), (0.001, 30)):
        own = make_optimiser(rate, steps, warmup=0.1, clip_norm=0.5)
        state = init_training(model, own, key=jax.random.key(0))
        for _ in range(4):
            state, metrics = finetune_step(
                model, own, state, {}, batch, key=jax.random.key(0)
            )
        losses.append(float(metrics["loss"]))
    assert finetune_step._cache_size() - before <= 1
    assert losses[0] != losses[1]


def test_rows_read_in_parts_give_the_same_gradient(model, fresh, batch):
    """Their mean is over all tokens, of answers of different lengths."""
    ends = np.asarray([24, 9, 3, 15])[:, None]
    mask = batch.response_mask & (np.arange(batch.response.shape[1]) < ends)
    batch, found = batch._replace(response_mask=mask), []
    for size in (None, 1, 2):
        state, metrics = finetune_step(
            model,
            OPTIMISER,
            fresh(),
            {},
            batch,
            prompt_dropout=0.3,
            microbatch_size=size,
            key=jax.random.key(0),
        )
        found.append((state.opt_state.mu, metrics))
    for other in found[1:]:
        for a, b in zip(*map(jax.tree.leaves, (found[0], other)), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-7)


def test_a_cpu_reads_a_batch_of_a_large_model_in_parts(
    monkeypatch, model, fresh, batch
):
    """The same step to 1e-6, in less memory; the batch size as a part asks for all."""
    monkeypatch.setattr(accumulation, "LARGE", 0)
    monkeypatch.setattr(accumulation, "SLOTS", 1)
    twice = take(batch, np.tile(np.arange(4), 2))  # a shape that no other test has
    programs = [
        finetune_step.lower(
            model,
            OPTIMISER,
            fresh(),
            {},
            twice,
            microbatch_size=size,
            key=jax.random.key(0),
        ).compile()
        for size in (None, 8)
    ]
    memory = [x.memory_analysis().temp_size_in_bytes for x in programs]
    assert memory[0] < 0.7 * memory[1]
    parts, whole = (x(fresh(), {}, twice, key=jax.random.key(0)) for x in programs)
    for a, b in zip(*map(jax.tree.leaves, (whole, parts)), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)


def test_padding_is_neither_read_nor_learnt(step, fresh, batch):
    junk = batch._replace(
        prompt=np.where(batch.prompt_mask, batch.prompt, 9).astype(np.int32),
        response=np.where(batch.response_mask, batch.response, 9).astype(np.int32),
    )
    assert not batch.prompt_mask.all()
    one, loss = step(fresh(), batch)
    two, same = step(fresh(), junk)
    assert loss == pytest.approx(same, rel=1e-6)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(two.params)):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_key_matters_only_where_prompt_tokens_are_hidden(step, fresh, batch):
    assert step(fresh(), batch, seed=0)[1] == step(fresh(), batch, seed=1)[1]
    hidden = [step(fresh(), batch, seed=s, prompt_dropout=0.5)[1] for s in (0, 0, 1)]
    assert hidden[0] == hidden[1] != hidden[2]


def test_hidden_prompt_tokens_are_a_share_and_never_the_last(batch):
    wide = jax.tree.map(lambda x: jnp.asarray(np.repeat(x, 50, axis=0)), batch)
    for share in (0.0, 0.3, 1.0):
        out = hide_prompt_tokens(wide, share, key=jax.random.key(0))
        kept, there = np.asarray(out.prompt_mask), np.asarray(wide.prompt_mask)
        assert kept[:, -1].all() and not (kept & ~there).any()
        rest = there.copy()
        rest[:, -1] = False
        assert kept[rest].mean() == pytest.approx(1.0 - share, abs=0.02)
        np.testing.assert_array_equal(out.prompt, wide.prompt)
        np.testing.assert_array_equal(out.response_mask, wide.response_mask)
