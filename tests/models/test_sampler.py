"""Sampling against decoding without a cache, and the log-probs it reports."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.config import ModelConfig
from dareu_jax.models import (
    Decoder,
    decoder_config,
    generate,
    hidden_states,
    init_decoder,
    logits_of,
    response_hidden,
    token_logps,
)
from dareu_jax.models.layers import dense
from dareu_jax.parallel import make_mesh

pytestmark = pytest.mark.slow

VOCAB, B, P, T = 64, 4, 7, 8
LENGTHS = np.array([7, 5, 2, 1])  # of the prompts
PROMPT_MASK = np.arange(P)[None] >= P - LENGTHS[:, None]
SHAPE = ModelConfig(preset="decoder-40k", layers=2, tied=False)


class Batch(NamedTuple):
    """The four arrays that scoring reads."""

    prompt: Any
    prompt_mask: Any
    response: Any
    response_mask: Any


@pytest.fixture(scope="module")
def model():
    return Decoder(decoder_config(SHAPE, VOCAB))


@pytest.fixture(scope="module")
def params(model):
    fresh = jax.jit(lambda key: init_decoder(model, key=key))(jax.random.key(0))
    return jax.tree.map(lambda x: 1.5 * x, fresh)


@pytest.fixture(scope="module")
def prompt():
    tokens = np.random.default_rng(0).integers(1, VOCAB, (B, P))
    return np.where(PROMPT_MASK, tokens, 0).astype(np.int32)


@functools.partial(jax.jit, static_argnums=0)
def full_logits(model, params, tokens, mask):
    return logits_of(model, params, hidden_states(model, params, tokens, mask))


@pytest.fixture(scope="module")
def plain_greedy(model, params, prompt):
    """``[B, T]`` tokens from a full forward each step: no cache, no left padding."""
    tokens = np.zeros((B, P + T), np.int32)
    ends = LENGTHS.copy()
    for b, length in enumerate(LENGTHS):
        tokens[b, :length] = prompt[b, P - length :]
    for _ in range(T):
        mask = np.arange(P + T)[None] < ends[:, None]
        logits = np.asarray(full_logits(model, params, tokens, mask))
        last = logits[np.arange(B), ends - 1]
        top = np.sort(last, axis=-1)
        assert np.all(top[:, -1] - top[:, -2] > 1e-4)  # no ties to break
        tokens[np.arange(B), ends] = last.argmax(-1)
        ends += 1
    return np.stack([tokens[b, n : n + T] for b, n in enumerate(LENGTHS)])


@pytest.fixture(scope="module")
def eos_id(plain_greedy):
    """A token that ends the first row in its middle."""
    row = plain_greedy[0].tolist()
    return next(token for t, token in enumerate(row) if t >= 3 and token not in row[:t])


def lengths_until(tokens, eos_id):
    """Counts the tokens of every row up to and including the first ``eos_id``."""
    return np.array([[*row.tolist(), eos_id].index(eos_id) + 1 for row in tokens]).clip(
        max=tokens.shape[1]
    )


@pytest.fixture(scope="module")
def greedy(model, eos_id):
    def run(params, prompt, seed=0, more=()):
        return generate(
            model,
            params,
            prompt,
            PROMPT_MASK,
            max_new_tokens=T,
            temperature=0.0,
            stop_ids=(eos_id, *more),
            key=jax.random.key(seed),
        )

    return run


@pytest.fixture(scope="module")
def sample(model, params, prompt):
    def run(seed, temperature=0.8, top_p=1.0, top_k=0, prompt=prompt):
        return generate(
            model,
            params,
            prompt,
            PROMPT_MASK,
            max_new_tokens=T,
            temperature=temperature,
            stop_ids=(3,),
            key=jax.random.key(seed),
            top_p=top_p,
            top_k=top_k,
        )

    return run


@pytest.fixture(scope="module")
def teacher_forced(model, params, prompt):
    """Logits of a rollout's tokens over temperature, by one forward."""

    @jax.jit
    def score(params, batch):
        return logits_of(model, params, response_hidden(model, params, batch))

    def run(rollout, temperature):
        batch = Batch(prompt, PROMPT_MASK, rollout.tokens, rollout.mask)
        return score(params, batch) / temperature

    return run


def always(token, model, params):
    """Parameters whose logits pick ``token`` whatever the context."""
    zero = jax.tree.map(jnp.zeros_like, params)
    head = zero["lm_head"]["kernel"].at[:, token].set(1.0)
    return zero | {
        "embed": {"embedding": jnp.ones_like(params["embed"]["embedding"])},
        "final_norm": jax.tree.map(jnp.ones_like, params["final_norm"]),
        "lm_head": {"kernel": head},
    }


def test_greedy_tokens_equal_decoding_without_a_cache(
    greedy, params, prompt, plain_greedy, eos_id
):
    out = greedy(params, prompt)
    assert len(np.unique(plain_greedy)) > T  # not one token repeated
    for b, n in enumerate(lengths_until(plain_greedy, eos_id)):
        np.testing.assert_array_equal(out.tokens[b, :n], plain_greedy[b, :n])


def test_a_row_stops_after_its_end_token_which_the_mask_includes(
    greedy, params, prompt, plain_greedy, eos_id
):
    out = greedy(params, prompt)
    lengths = lengths_until(plain_greedy, eos_id)
    assert 3 < lengths[0] <= T and lengths.max() == T
    np.testing.assert_array_equal(out.mask, np.arange(T)[None] < lengths[:, None])
    assert out.tokens[0, lengths[0] - 1] == eos_id
    assert np.all(np.asarray(out.tokens)[~np.asarray(out.mask)] == eos_id)
    assert np.all(np.asarray(out.logps)[~np.asarray(out.mask)] == 0.0)


def test_any_of_several_tokens_ends_a_row(greedy, params, prompt, plain_greedy, eos_id):
    other = int(plain_greedy[1][2])
    assert other != eos_id
    out = greedy(params, prompt, more=(other,))
    first = np.minimum(*(lengths_until(plain_greedy, x) for x in (eos_id, other)))
    np.testing.assert_array_equal(out.mask, np.arange(T)[None] < first[:, None])
    assert first[1] <= 3 and out.tokens[1, first[1] - 1] == other
    assert np.all(np.asarray(out.tokens)[~np.asarray(out.mask)] == eos_id)


def test_greedy_log_probabilities_are_zero_and_the_key_does_not_matter(
    greedy, params, prompt
):
    one, two = greedy(params, prompt, seed=1), greedy(params, prompt, seed=2)
    np.testing.assert_array_equal(one.tokens, two.tokens)
    np.testing.assert_array_equal(one.logps, np.zeros((B, T)))


@pytest.mark.parametrize("row", range(B))
def test_a_row_does_not_depend_on_the_other_rows(greedy, params, prompt, row):
    others = np.where(np.arange(B)[:, None] == row, prompt, (prompt * 5 + 11) % VOCAB)
    alone, together = greedy(params, others), greedy(params, prompt)
    np.testing.assert_array_equal(alone.tokens[row], together.tokens[row])
    np.testing.assert_array_equal(alone.mask[row], together.mask[row])
    rest = np.arange(B) != row
    assert np.any(np.asarray(alone.tokens)[rest] != np.asarray(together.tokens)[rest])


def test_content_of_the_prompt_padding_does_not_matter(greedy, params, prompt):
    junk = np.where(PROMPT_MASK, prompt, 13).astype(np.int32)
    np.testing.assert_array_equal(
        greedy(params, junk).tokens, greedy(params, prompt).tokens
    )


def test_rows_that_end_at_once_have_one_true_token_each(
    greedy, model, params, prompt, eos_id
):
    out = greedy(always(eos_id, model, params), prompt)
    np.testing.assert_array_equal(jnp.sum(out.mask, axis=1), np.ones(B))
    assert np.all(np.asarray(out.mask)[:, 0])
    np.testing.assert_array_equal(out.tokens, np.full((B, T), eos_id))


def counted(model):
    """The model, and the list of how many rows each forward has had."""
    calls = []

    def counting(x, kernel, slot=None):
        if x.ndim == 2:  # [B, D], the unembedding: once per forward
            rows = len(x)
            jax.debug.callback(lambda: calls.append(rows), ordered=True)
        return dense(x, kernel)

    return Decoder(model.cfg, counting), calls


def test_decoding_stops_when_every_row_has_ended(model, params, prompt):
    spied, calls = counted(model)

    def forwards(token):
        calls.clear()
        out = generate(
            spied,
            always(token, model, params),
            prompt,
            PROMPT_MASK,
            max_new_tokens=T,
            temperature=0.0,
            stop_ids=(3,),
            key=jax.random.key(0),
        )
        jax.block_until_ready(out)
        jax.effects_barrier()
        return len(calls)

    assert forwards(3) == 1  # the prompt
    assert forwards(4) == T


def test_calls_of_one_shape_compile_once(greedy, params, prompt):
    cache_size = generate._cache_size  # type: ignore[attr-defined]
    greedy(params, prompt)
    compiled = cache_size()
    halved = jax.tree.map(lambda x: 0.5 * x, params)
    greedy(halved, (prompt + 1) % VOCAB, seed=9)
    assert cache_size() == compiled


def test_reported_log_probabilities_are_those_of_the_sampling_policy(
    sample, teacher_forced
):
    out = sample(seed=5, temperature=0.8)
    assert out.tokens.dtype == jnp.int32 and out.mask.dtype == bool
    assert out.logps.dtype == jnp.float32
    expected = token_logps(teacher_forced(out, 0.8), out.tokens)
    real = np.asarray(out.mask)
    np.testing.assert_allclose(
        np.asarray(out.logps)[real], np.asarray(expected)[real], atol=1e-4
    )
    assert np.all(np.asarray(out.logps)[~real] == 0.0)


def test_the_same_key_gives_the_same_tokens_and_another_key_others(sample):
    one, same, other = sample(seed=5), sample(seed=5), sample(seed=6)
    np.testing.assert_array_equal(one.tokens, same.tokens)
    np.testing.assert_array_equal(one.logps, same.logps)
    assert np.any(np.asarray(one.tokens) != np.asarray(other.tokens))


@pytest.mark.parametrize(("top_p", "top_k"), [(0.5, 0), (1.0, 3)])
def test_truncated_samples_have_renormalised_log_probabilities(
    sample, teacher_forced, top_p, top_k
):
    for seed in range(5):
        out = sample(seed, 0.8, top_p, top_k)
        logits = np.asarray(teacher_forced(out, 0.8), np.float64)
        probs = np.exp(logits - logits.max(-1, keepdims=True))
        probs /= probs.sum(-1, keepdims=True)
        for b, t in np.argwhere(np.asarray(out.mask)):
            order = np.argsort(-probs[b, t])
            size = top_k or np.searchsorted(np.cumsum(probs[b, t][order]), top_p) + 1
            nucleus = order[:size].tolist()
            token = int(out.tokens[b, t])
            assert token in nucleus
            share = probs[b, t, token] / probs[b, t, nucleus].sum()
            assert float(out.logps[b, t]) == pytest.approx(np.log(share), abs=1e-4)


def test_log_probabilities_of_a_bfloat16_policy_are_float32(model, params, prompt):
    narrow = Decoder(dataclasses.replace(model.cfg, compute_dtype="bfloat16"))
    out = generate(
        narrow,
        params,
        prompt,
        PROMPT_MASK,
        max_new_tokens=2,
        temperature=0.8,
        stop_ids=(3,),
        key=jax.random.key(0),
    )
    assert out.logps.dtype == jnp.float32
    assert np.all(np.isfinite(out.logps)) and np.all(np.asarray(out.logps) <= 0.0)


def test_what_a_row_draws_does_not_depend_on_the_other_rows(sample, prompt):
    others = np.where(np.arange(B)[:, None] == 2, prompt, (prompt * 5 + 11) % VOCAB)
    alone, together = sample(7, prompt=others), sample(7)
    np.testing.assert_array_equal(alone.tokens[2], together.tokens[2])
    assert np.any(np.asarray(alone.tokens) != np.asarray(together.tokens))


def test_rows_that_have_ended_leave_the_batch_and_no_answer_changes(model, params):
    rows, tokens = 16, 24
    prompt = np.random.default_rng(1).integers(1, VOCAB, (rows, P), dtype=np.int32)
    spied, forwards = counted(model)

    def answers(model):
        return generate(
            model,
            params,
            prompt,
            np.ones((rows, P), bool),
            max_new_tokens=tokens,
            temperature=1.0,
            stop_ids=tuple(range(8)),
            key=jax.random.key(3),
        )

    out = jax.block_until_ready(answers(spied))
    jax.effects_barrier()
    going = np.asarray(out.mask).sum(axis=0)[: len(forwards)]
    assert going[0] == rows and 0 < going[-1] < rows // 2  # they end at many places
    assert forwards == [rows if n > rows // 2 else rows // 2 for n in going]
    with jax.set_mesh(make_mesh(8)):  # rows of a device stay there
        whole = answers(model)
    np.testing.assert_array_equal(out.tokens, whole.tokens)
    np.testing.assert_array_equal(out.mask, whole.mask)
    np.testing.assert_allclose(out.logps, whole.logps, atol=1e-5)
