"""Rows between the phases of a DareU iteration: repeated, answered, cut, shuffled."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from dareu_jax.data.batches import TokenBatch
from dareu_jax.models import Rollout
from dareu_jax.parallel import along_batch, key_of, on_host
from dareu_jax.training.accumulation import parts_of
from dareu_jax.unlearning.dareu_options import DareuConfig
from dareu_jax.unlearning.setting import Experience

Array = jax.Array


@functools.partial(jax.jit, static_argnames="times")
def repeat_rows(batch: TokenBatch, times: int) -> TokenBatch:
    """Return every row several times, for several samples per prompt."""
    return jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), batch)


def answered(prompts: TokenBatch, rollout: Rollout) -> TokenBatch:
    """Return the prompts with the sampled responses in place of the gold ones."""
    return prompts._replace(response=rollout.tokens, response_mask=rollout.mask)


@jax.jit
def longest(mask: Array) -> Array:
    """Return the most true entries of a row of ``mask [B, T]``, int32 ``[]``."""
    return jnp.max(jnp.sum(mask.astype(jnp.int32), axis=1))


@functools.partial(jax.jit, static_argnames="width")
def first_tokens(said: Rollout, width: int) -> Rollout:
    """Return the first ``width`` slots of every answer."""
    return jax.tree.map(lambda x: x[:, :width], said)


def cut(said: Rollout, widths: tuple[int, ...]) -> Rollout:
    """Return answers as wide as the smallest of ``widths`` that holds the longest.

    One number is read back for it. Answers that are traced stay as they are.
    """
    if len(widths) == 1 or isinstance(said.mask, jax.core.Tracer):
        return said
    needed = int(on_host(longest(said.mask)))
    width = next(width for width in widths if width >= needed)
    return said if width == said.mask.shape[1] else first_tokens(said, width)


def minibatches(
    hp: DareuConfig, experience: Experience, number: int, *, key: Array
) -> tuple[Experience, ...]:
    """Return what each update of pass ``number`` over a batch learns from.

    The rows are in another order in each pass; whole batches stay as they are.
    """
    if hp.minibatches == 1:
        return (experience,)
    return shuffled(experience, hp.minibatches, key=key_of(key, 2 + number))


@functools.partial(jax.jit, static_argnames="count")
def shuffled(batch: Any, count: int, *, key: Array) -> tuple[Any, ...]:
    """Return ``count`` equal parts of a batch, with the rows in an order by the key."""
    order = jax.random.permutation(key, len(jax.tree.leaves(batch)[0]))
    mixed = jax.tree.map(lambda x: along_batch(jnp.take(x, order, axis=0)), batch)
    parts = parts_of(mixed, count)
    return tuple(jax.tree.map(lambda x, n=n: x[n], parts) for n in range(count))
