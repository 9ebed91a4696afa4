"""Kernel `representation`: cosine of mean hidden states (RepSim)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dareu_jax.attribution.kernel import (
    OWNERS,
    Kernel,
    OwnerBatch,
    Setup,
    by_field,
    from_prefixes,
    last_valid,
    or_one,
    owner_weights,
    running_mean,
)
from dareu_jax.data.batches import TokenBatch, own_tokens
from dareu_jax.models import Decoder, hidden_states, whole_text
from dareu_jax.registry import KERNELS

Array = jax.Array
FLOOR = 1e-6


class StateIndex(NamedTuple):
    """Sums ``[O, D]`` of the records' mean states, and how many ``[O]``."""

    states: Array
    counts: Array


def prefix_states(model: Decoder, params: Any, batch: TokenBatch) -> Array:
    """Return the mean state of the own tokens up to every t, ``[B, T, D]`` float32."""
    hidden = hidden_states(model, params, *whole_text(batch))
    own = hidden[:, batch.prompt.shape[1] :].astype(jnp.float32)
    return running_mean(own, own_tokens(batch))


def cosine(a: Array, b: Array) -> Array:
    """Return cos(a, b) ``[..., O]`` of ``a [..., D]`` and ``b [O, D]``."""
    size = jnp.linalg.norm(a, axis=-1)[..., None] * jnp.linalg.norm(b, axis=-1)
    return a @ b.T / jnp.maximum(size, FLOOR)


@KERNELS.register("representation", "cosine of mean hidden states (RepSim)")
def make_representation(setup: Setup) -> Kernel:
    """Return the cosine of a response's mean last state with its owner's.

    The mean over all owners is taken off both.
    """
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
        means = index.states / or_one(index.counts)[:, None]
        centre = index.states.sum(axis=0) / or_one(index.counts.sum())
        states = prefix_states(model, params, queries)
        return cosine(states - centre, means - centre)

    return from_prefixes(
        name="representation",
        owners=owners,
        init=init,
        update=update,
        prefix_score=prefix_score,
        follows_model=True,
        axes=by_field({"states": (OWNERS, "embed"), "counts": (OWNERS,)}),
    )
