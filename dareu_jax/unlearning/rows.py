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

Array = jax.Array
LEFT = 4
"""Tokens of a gold answer, its end included, that no prefix takes."""


@functools.partial(jax.jit, static_argnames="times")
def repeat_rows(batch: TokenBatch, times: int) -> TokenBatch:
    """Return every row several times, for several samples per prompt."""
    return jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), batch)


@functools.partial(jax.jit, static_argnames="share")
def begun(batch: TokenBatch, share: float, *, key: Array) -> TokenBatch:
    """Return prompts ``[B, P + T]``, a ``share`` of which go on into the gold answer.

    The answer goes on behind a random part of the gold one, which counts as prompt: no
    action, no loss, and hidden from the kernel like it. `LEFT` tokens or more of the
    gold answer are left to say. The other prompts stay as they are, in more slots.
    """
    which, where = jax.random.split(key)
    rows, t = batch.response.shape
    room = jnp.sum(batch.response_mask.astype(jnp.int32), axis=1) - LEFT
    drawn = jax.random.uniform(where, (rows,), jnp.float32)
    taken = 1 + jnp.floor(drawn * room.astype(jnp.float32)).astype(jnp.int32)
    is_begun = jax.random.uniform(which, (rows,), jnp.float32) < share
    taken = jnp.where(is_begun & (room > 0), jnp.minimum(taken, room), 0)
    tokens = jnp.concatenate([batch.prompt, batch.response], axis=1)
    real = jnp.concatenate([batch.prompt_mask, batch.response_mask], axis=1)
    slot = jnp.arange(tokens.shape[1], dtype=jnp.int32) - (t - taken)[:, None]
    at = jnp.maximum(slot, 0)
    prompt = jnp.take_along_axis(tokens, at, axis=1)
    mask = jnp.take_along_axis(real, at, axis=1) & (slot >= 0)
    return batch._replace(prompt=prompt, prompt_mask=mask)


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
    hp: DareuConfig, rows: Any, number: int, *, key: Array
) -> tuple[Any, ...]:
    """Return what each update of pass ``number`` over a batch learns from.

    The rows are in another order in each pass; whole batches stay as they are.
    """
    if hp.updates_per_pass == 1:
        return (rows,)
    return shuffled(rows, hp.updates_per_pass, key=key_of(key, 2 + number))


@functools.partial(jax.jit, static_argnames="count")
def shuffled(batch: Any, count: int, *, key: Array) -> tuple[Any, ...]:
    """Return ``count`` equal parts of a batch, with the rows in an order by the key.

    Rows that the devices cannot share are on each of them.
    """
    order = jax.random.permutation(key, len(jax.tree.leaves(batch)[0]))
    mixed = jax.tree.map(lambda x: along_batch(jnp.take(x, order, axis=0)), batch)
    parts = parts_of(mixed, count)
    return tuple(
        jax.tree.map(lambda x, n=n: along_batch(x[n], or_whole=True), parts)
        for n in range(count)
    )
