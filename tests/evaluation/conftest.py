"""A tiny random decoder, responses of mixed lengths, and their logits in NumPy."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.config import ModelConfig
from dareu_jax.data import TokenBatch
from dareu_jax.models import (
    Decoder,
    decoder_config,
    init_decoder,
    logits_of,
    response_hidden,
)

VOCAB, EOS, PROMPT, RESPONSE = 64, 2, 6, 7
LENGTHS = (7, 1, 4, 2, 5, 3, 6, 7)


class Told(NamedTuple):
    """A decoder, 8 responses, their log p ``[B, T, V]`` in float64, and its logits."""

    model: Decoder
    params: Any
    batch: TokenBatch
    logps: np.ndarray
    logits: Callable[[TokenBatch], np.ndarray]

    @property
    def picked(self) -> np.ndarray:
        """log p of the responses' tokens ``[B, T]``, in the mask or not."""
        return np.take_along_axis(self.logps, self.batch.response[..., None], -1)[
            ..., 0
        ]


def log_softmax(logits) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def padded(batch: TokenBatch, left: int, right: int, junk: int = 9) -> TokenBatch:
    """The same texts with more padding on both sides."""
    lefts, rights = ((0, 0), (left, 0)), ((0, 0), (0, right))
    return batch._replace(
        prompt=np.pad(batch.prompt, lefts, constant_values=junk),
        prompt_mask=np.pad(batch.prompt_mask, lefts),
        response=np.pad(batch.response, rights, constant_values=junk),
        response_mask=np.pad(batch.response_mask, rights),
    )


@pytest.fixture(scope="session")
def told() -> Told:
    """Half of the tokens are the argmax; every response ends in the end of text."""
    rng, count = np.random.default_rng(0), len(LENGTHS)
    tiny = decoder_config(ModelConfig(preset="decoder-40k"), VOCAB)
    model = Decoder(dataclasses.replace(tiny, layers=2))
    params = jax.jit(lambda key: init_decoder(model, key=key))(jax.random.key(0))
    params = jax.tree.map(lambda x: 1.5 * x, params)
    prompts = 1 + np.arange(count) % PROMPT
    mask = np.arange(RESPONSE) < np.asarray(LENGTHS)[:, None]
    batch = TokenBatch(
        prompt=rng.integers(3, VOCAB, (count, PROMPT)).astype(np.int32),
        prompt_mask=np.arange(PROMPT) >= PROMPT - prompts[:, None],
        response=np.where(mask, rng.integers(3, VOCAB, mask.shape), 0).astype(np.int32),
        response_mask=mask,
        index=np.arange(count, dtype=np.int32),
    )

    @jax.jit
    def said(batch: TokenBatch) -> jax.Array:
        return logits_of(model, params, response_hidden(model, params, batch))

    def logits(batch: TokenBatch) -> np.ndarray:
        return np.asarray(said(batch))

    for t in range(RESPONSE):
        likeliest = np.argmax(logits(batch)[:, t], axis=-1)
        takes = mask[:, t] & (rng.random(count) < 0.5)
        batch.response[:, t] = np.where(takes, likeliest, batch.response[:, t])
        ends = t + 1 == np.asarray(LENGTHS)
        batch.response[:, t] = np.where(ends, EOS, batch.response[:, t])
    return Told(model, params, batch, log_softmax(said(batch)), logits)


@pytest.fixture(scope="session")
def broken(told) -> Any:
    """Parameters whose logits are all NaN."""
    return jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), told.params)


@pytest.fixture(scope="session")
def pad() -> Any:
    """The same texts with more padding: ``pad(batch, left, right)``."""
    return padded
