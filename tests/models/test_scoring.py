"""Logits and log-probabilities of responses: padding, masks, NumPy."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import sizes_in

from dareu_jax.config import ModelConfig
from dareu_jax.models import (
    Decoder,
    apply_head,
    decoder_config,
    hidden_states,
    init_decoder,
    init_head,
    logits_of,
    response_hidden,
    response_logps,
    token_logps,
)
from dareu_jax.models.scoring import LOGITS_AT_ONCE, over_positions, positions_of

VOCAB, P, T = 64, 5, 4


class Batch(NamedTuple):
    """The four arrays that scoring reads."""

    prompt: Any
    prompt_mask: Any
    response: Any
    response_mask: Any


@pytest.fixture(scope="module")
def model():
    return Decoder(decoder_config(ModelConfig(preset="decoder-40k"), VOCAB))


@pytest.fixture(scope="module")
def params(model):
    return jax.jit(lambda key: init_decoder(model, key=key))(jax.random.key(0))


@pytest.fixture(scope="module")
def batch():
    numbers = np.random.default_rng(0).integers(1, VOCAB, (3, P + T))
    tokens = jnp.asarray(numbers, jnp.int32)
    lengths = jnp.array([4, 1, 3])
    return Batch(
        prompt=tokens[:, :P],
        prompt_mask=jnp.ones((3, P), bool),
        response=tokens[:, P:],
        response_mask=jnp.arange(T)[None] < lengths[:, None],
    )


def left_padded(batch, pads, junk=0):
    wide = ((0, 0), (pads, 0))
    return batch._replace(
        prompt=jnp.pad(batch.prompt, wide, constant_values=junk),
        prompt_mask=jnp.pad(batch.prompt_mask, wide, constant_values=False),
    )


def right_padded(batch, pads, junk=0):
    wide = ((0, 0), (0, pads))
    return batch._replace(
        response=jnp.pad(batch.response, wide, constant_values=junk),
        response_mask=jnp.pad(batch.response_mask, wide, constant_values=False),
    )


@functools.partial(jax.jit, static_argnums=0)
def logits_at(model, params, batch):
    return logits_of(model, params, response_hidden(model, params, batch))


logps_at = jax.jit(response_logps, static_argnums=0)


@pytest.mark.parametrize("pads", [3, 11])
def test_left_padding_the_prompt_changes_no_response_logits(model, params, batch, pads):
    out = logits_at(model, params, left_padded(batch, pads, junk=9))
    plain = logits_at(model, params, batch)
    assert out.shape == plain.shape == (3, T, VOCAB)
    real = np.asarray(batch.response_mask)
    np.testing.assert_allclose(
        np.asarray(out)[real], np.asarray(plain)[real], atol=1e-5
    )


def test_right_padding_the_response_changes_no_log_probability(model, params, batch):
    plain = np.asarray(logps_at(model, params, batch))
    for junk in (0, 9):  # one compilation
        out = np.asarray(logps_at(model, params, right_padded(batch, 5, junk)))
        np.testing.assert_allclose(out[:, :T], plain, atol=1e-5)
        assert np.all(out[:, T:] == 0.0)


def test_response_logits_are_those_that_predict_each_response_token(
    model, params, batch
):
    tokens = jnp.concatenate([batch.prompt, batch.response], axis=1)
    mask = jnp.concatenate([batch.prompt_mask, batch.response_mask], axis=1)
    every = logits_of(model, params, hidden_states(model, params, tokens, mask))
    out = logits_at(model, params, batch)
    np.testing.assert_allclose(out, every[:, P - 1 : P - 1 + T], atol=1e-5)


def test_temperature_divides_the_logits(model, params, batch):
    warm = jax.nn.log_softmax(logits_at(model, params, batch) / 0.8, axis=-1)
    expected = jnp.take_along_axis(warm, batch.response[..., None], axis=-1)[..., 0]
    real = np.asarray(batch.response_mask)
    out = np.asarray(logps_at(model, params, batch, 0.8))
    np.testing.assert_allclose(out[real], np.asarray(expected)[real], atol=1e-5)


def test_response_log_probabilities_are_zero_outside_the_mask(model, params, batch):
    out = np.asarray(logps_at(model, params, batch))
    real = np.asarray(batch.response_mask)
    assert out.dtype == np.float32
    assert np.all(out[~real] == 0.0) and np.all(out[real] < 0.0)
    expected = token_logps(logits_at(model, params, batch), batch.response)
    np.testing.assert_allclose(out[real], np.asarray(expected)[real], atol=1e-5)


def test_token_log_probabilities_match_a_numpy_log_softmax():
    rng = np.random.default_rng(1)
    logits, tokens = 5.0 * rng.normal(size=(2, 3, 7)), rng.integers(0, 7, (2, 3))
    logits[0, 0] += 1000.0  # a naive exponential would overflow
    shifted = logits - logits.max(-1, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    expected = np.take_along_axis(log_softmax, tokens[..., None], -1)[..., 0]
    out = token_logps(jnp.asarray(logits, jnp.float32), jnp.asarray(tokens, jnp.int32))
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)


def test_logits_of_another_type_or_rank_are_refused():
    tokens = jnp.zeros((2, 3), jnp.int32)
    with pytest.raises(AssertionError):
        token_logps(jnp.zeros((2, 3, 7), jnp.bfloat16), tokens)
    with pytest.raises(AssertionError):
        token_logps(jnp.zeros((3, 7), jnp.float32), tokens)


def test_positions_count_the_true_entries_from_zero():
    mask = jnp.array([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
    np.testing.assert_array_equal(
        positions_of(mask), [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2]]
    )


def test_a_fresh_head_is_zero_and_float32():
    head = init_head(3, 8, key=jax.random.key(0))
    out = apply_head(3, head, jnp.ones((2, 8), jnp.bfloat16))
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, np.zeros((2, 3)))


def test_a_head_is_a_linear_map():
    rng = np.random.default_rng(2)
    kernel, bias, x = (
        rng.normal(size=(8, 3)),
        rng.normal(size=3),
        rng.normal(size=(2, 8)),
    )
    to_f32 = functools.partial(jnp.asarray, dtype=jnp.float32)
    weights = {"kernel": to_f32(kernel), "bias": to_f32(bias)}
    out = apply_head(3, weights, to_f32(x))
    np.testing.assert_allclose(out, x @ kernel + bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 3, 4, 7, 8, 99])
def test_positions_in_parts_give_the_whole_and_its_gradient(size):
    rng = np.random.default_rng(0)
    hidden, kernel = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in [(2, 8, 5), (5, 9)]
    )
    tokens = jnp.asarray(rng.integers(0, 9, (2, 8)), jnp.int32)

    def total(hidden, kernel, size):
        def score(h, y):
            return token_logps(h @ kernel, y)

        logps = over_positions(score, size, hidden, tokens)
        assert logps.shape == (2, 8)
        return jnp.sum(logps * jnp.arange(8.0)), logps

    part = jax.grad(total, (0, 1), has_aux=True)(hidden, kernel, size)
    whole = jax.grad(total, (0, 1), has_aux=True)(hidden, kernel, 8)
    for a, b in zip(jax.tree.leaves(part), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_large_vocabulary_has_never_the_logits_of_a_whole_batch():
    rows, prompt, response, vocab = 8, 16, 256, 151_936
    model = Decoder(decoder_config(ModelConfig(preset="decoder-40k"), vocab))
    params = jax.eval_shape(lambda k: init_decoder(model, key=k), jax.random.key(0))
    shape = jax.ShapeDtypeStruct
    batch = Batch(
        *(shape((rows, prompt), dtype) for dtype in (jnp.int32, bool)),
        *(shape((rows, response), dtype) for dtype in (jnp.int32, bool)),
    )
    loss = jax.grad(lambda params, batch: jnp.sum(response_logps(model, params, batch)))
    largest = max(sizes_in(jax.make_jaxpr(loss)(params, batch).jaxpr))
    at_once = LOGITS_AT_ONCE // (rows * vocab)
    assert 1 < at_once < response and rows * at_once * vocab <= LOGITS_AT_ONCE
    assert rows * at_once * vocab <= largest <= LOGITS_AT_ONCE  # it looked inside
