"""Kernel `representation`: cosine of mean hidden states (RepSim)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dareu_jax.attribution.kernel import (
    Kernel,
    OwnerBatch,
    Setup,
    last_valid,
    owner_weights,
)
from dareu_jax.corpus.batches import TokenBatch
from dareu_jax.models import Decoder, hidden_states
from dareu_jax.registry import KERNELS

Array = jax.Array
FLOOR = 1e-6


class StateIndex(NamedTuple):
    """Sums ``[O, D]`` of the records' mean states, and how many ``[O]``."""

    states: Array
    counts: Array


def prefix_states(model: Decoder, params: Any, batch: TokenBatch) -> Array:
    """Mean state of the response's tokens up to every t, ``[B, T, D]`` float32."""
    tokens = jnp.concatenate([batch.prompt, batch.response], axis=1)
    mask = jnp.concatenate([batch.prompt_mask, batch.response_mask], axis=1)
    hidden = hidden_states(model, params, tokens, mask)[:, batch.prompt.shape[1] :]
    real = batch.response_mask[..., None]
    total = jnp.cumsum(jnp.where(real, hidden.astype(jnp.float32), 0.0), axis=1)
    count = jnp.cumsum(real.astype(jnp.float32), axis=1)
    return total / jnp.maximum(count, 1.0)


def cosine(a: Array, b: Array) -> Array:
    """cos(a, b) ``[..., O]`` of ``a [..., D]`` and ``b [O, D]``."""
    size = jnp.linalg.norm(a, axis=-1)[..., None] * jnp.linalg.norm(b, axis=-1)
    return a @ b.T / jnp.maximum(size, FLOOR)


@KERNELS.register("representation", "cosine of mean hidden states (RepSim)")
def make_representation(setup: Setup) -> Kernel:
    """Cosine of a response's mean last state with the owner's, both off the centre."""
    model, owners = setup.model, setup.owners

    def init(params, *, key: Array) -> StateIndex:
        sums = jnp.zeros((owners, model.cfg.embed), jnp.float32)
        return StateIndex(sums, jnp.zeros(owners, jnp.float32))

    @jax.jit
    def update(params, batch: OwnerBatch, acc: StateIndex):
        states = prefix_states(model, params, batch.text)
        weights = owner_weights(batch, owners)
        whole = last_valid(states, batch.text.response_mask)
        sums, counts = acc.states + weights.T @ whole, acc.counts + weights.sum(axis=0)
        return StateIndex(sums, counts), {"loss": jnp.float32(0.0)}

    def prefix_score(params, index: StateIndex, queries: TokenBatch) -> Array:
        means = index.states / jnp.maximum(index.counts, 1.0)[:, None]
        centre = index.states.sum(axis=0) / jnp.maximum(index.counts.sum(), 1.0)
        states = prefix_states(model, params, queries)
        return cosine(states - centre, means - centre)

    def score(params, index, queries) -> Array:
        return last_valid(prefix_score(params, index, queries), queries.response_mask)

    return Kernel(
        name="representation",
        owners=owners,
        init=init,
        update=update,
        finalize=lambda params, acc: acc,
        score=score,
        prefix_score=prefix_score,
        names_copies=False,
    )
