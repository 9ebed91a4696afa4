"""Jitted prefill and decoding with a key-value cache."""

import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dareu_jax.models.decoder import Decoder, KVCache
from dareu_jax.models.next_token import best_token, drawn_token, truncated
from dareu_jax.models.scoring import causal, logits_of, positions_of
from dareu_jax.parallel import BATCH_AXES

Array = jax.Array
FEWEST, SIZES = 4, 3
"""Rows of the smallest batch that others are cut down to, and how many sizes there are:
each is a loop of its own in the program."""


class Rollout(NamedTuple):
    """What was sampled: ``tokens [B, T] int32``, ``mask [B, T] bool``, ``logps``.

    ``logps [B, T]`` float32 are those of the *sampling* policy: after temperature,
    top-k and top-p. The mask is true up to and including the end-of-text token.
    """

    tokens: Array
    mask: Array
    logps: Array


class Sampling(NamedTuple):
    """How a token is chosen, and which ``stop_ids`` end a text; 0: the likeliest."""

    temperature: float
    top_k: int
    top_p: float
    stop_ids: tuple[int, ...]


class Rows(NamedTuple):
    """The rows that are being decoded, b of the B in the batch.

    Attributes:
      place: ``[b]``, where a row stands in the batch.
      key: ``[b]``, of its random numbers.
      length: ``[b]``, tokens of its prompt.
      token: ``[b]``, its last token; done: ``[b]`` bool, whether that ended it.
      slots: ``[b, P + T]`` bool, which of the cache's are its own.
      said: what they have said, ``[b, T]``.
    """

    place: Array
    key: Array
    length: Array
    token: Array
    done: Array
    slots: Array
    cache: KVCache
    said: Rollout


@functools.partial(
    jax.jit,
    static_argnames=(
        "model",
        "max_new_tokens",
        "temperature",
        "top_k",
        "top_p",
        "stop_ids",
    ),
)
@jax.named_scope("rollout")
def generate(
    model: Decoder,
    params: dict,
    prompt: Array,
    prompt_mask: Array,
    *,
    max_new_tokens: int,
    temperature: float,
    stop_ids: tuple[int, ...],
    key: Array,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Rollout:
    """Sample a response to each prompt; stop when every row has ended.

    Prompts ``[B, P]`` are padded left; temperature 0 is greedy. Any of ``stop_ids``
    ends a text, and the first fills what is behind it, where the mask is false. A row's
    draws depend on ``key``, its place in the batch and its own text, on nothing else.
    """
    how = Sampling(temperature, top_k, top_p, stop_ids)
    b, t = len(prompt), max_new_tokens
    logits, cache = _prefill(model, params, prompt, prompt_mask, t)
    place = jnp.arange(b, dtype=jnp.int32)
    rows = Rows(
        place=place,
        key=jax.vmap(functools.partial(jax.random.fold_in, key))(place),
        length=jnp.sum(prompt_mask.astype(jnp.int32), axis=1),
        token=jnp.zeros(b, jnp.int32),
        done=jnp.zeros(b, bool),
        slots=jnp.concatenate([prompt_mask, jnp.zeros((b, t), bool)], axis=1),
        cache=cache,
        said=_nothing(b, t, stop_ids[0]),
    )
    rows = _say(how, logits, rows, jnp.int32(0))
    sizes = [*batch_sizes(b), 0]
    i, rows = _decode_while(model, params, how, (jnp.int32(1), rows), fewest=sizes[1])
    whole = rows.said
    for size, smaller in itertools.pairwise(sizes[1:]):
        carry = (i, _first_to_go_on(rows, size))
        i, rows = _decode_while(model, params, how, carry, fewest=smaller)
        whole = _put(rows.said, rows.place, whole)
    return whole


def batch_sizes(rows: int) -> list[int]:
    """Return how many rows go on at the same time: all, and half of them, and so on.

    Only all where devices have rows of their own, which would have to move.
    """
    mesh = dict(jax.sharding.get_abstract_mesh().shape)
    if math.prod(mesh.get(axis, 1) for axis in BATCH_AXES) > 1:
        return [rows]
    halves = [-(-rows // 2**n) for n in range(SIZES)]
    return [size for size in halves if size == rows or size >= FEWEST]


def _prefill(
    model: Decoder, params: dict, prompt: Array, prompt_mask: Array, new: int
) -> tuple[Array, KVCache]:
    """Return logits ``[B, V]`` of the last token, and a cache with room for ``new``."""
    b, p = prompt.shape
    empty = KVCache.empty(model.cfg, b, p + new)
    positions, visible = positions_of(prompt_mask), causal(prompt_mask)
    hidden, cache = model.apply({"params": params}, prompt, positions, visible, empty)
    return logits_of(model, params, hidden[:, -1]), cache


def _nothing(b: int, t: int, fill: int) -> Rollout:
    """Return the `Rollout` in which no row has said a token."""
    return Rollout(
        tokens=jnp.full((b, t), fill, jnp.int32),
        mask=jnp.zeros((b, t), bool),
        logps=jnp.zeros((b, t), jnp.float32),
    )


def _first_to_go_on(rows: Rows, size: int) -> Rows:
    """Return ``size`` of the rows: those that have not ended, and others behind."""
    kept = jnp.argsort(rows.done, stable=True)[:size]
    cache = jax.tree.map(lambda x: jnp.take(x, kept, axis=1), rows.cache)
    own = rows._replace(cache=None)
    return jax.tree.map(lambda x: x[kept], own)._replace(cache=cache)


def _put(said: Rollout, place: Array, whole: Rollout) -> Rollout:
    """Return ``whole [B, T]`` with what the rows at ``place [b]`` have said since."""
    return jax.tree.map(lambda x, own: x.at[place].set(own), whole, said)


def _decode_while(
    model: Decoder,
    params: dict,
    how: Sampling,
    start: tuple[Array, Rows],
    *,
    fewest: int,
) -> tuple[Array, Rows]:
    """Decode token after token while more than ``fewest`` rows have not ended."""

    def more(carry: tuple[Array, Rows]) -> Array:
        i, rows = carry
        return (i < rows.said.tokens.shape[1]) & (jnp.sum(~rows.done) > fewest)

    def body(carry: tuple[Array, Rows]) -> tuple[Array, Rows]:
        i, rows = carry
        logits, rows = _decode(model, params, rows, i - 1)
        return i + 1, _say(how, logits, rows, i)

    return jax.lax.while_loop(more, body, start)


def _decode(model: Decoder, params: dict, rows: Rows, i: Array) -> tuple[Array, Rows]:
    """Run token ``i``, the last; return logits ``[b, V]`` of the next."""
    slot = rows.slots.shape[1] - rows.said.tokens.shape[1] + i
    slots = rows.slots.at[:, slot].set(True)
    hidden, cache = model.apply(
        {"params": params},
        rows.token[:, None],
        (rows.length + i)[:, None],
        slots[:, None, :],
        rows.cache,
        slot,
    )
    logits = logits_of(model, params, hidden[:, 0])
    return logits, rows._replace(slots=slots, cache=cache)


def _say(how: Sampling, logits: Array, rows: Rows, i: Array) -> Rows:
    """Choose token ``i`` of every row, and write it down where the row goes on."""
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(rows.key, i)
    token, logp = next_token(how, logits, keys=keys)
    said = Rollout(
        tokens=rows.said.tokens.at[:, i].set(
            jnp.where(rows.done, how.stop_ids[0], token)
        ),
        mask=rows.said.mask.at[:, i].set(~rows.done),
        logps=rows.said.logps.at[:, i].set(jnp.where(rows.done, 0.0, logp)),
    )
    ended = jnp.isin(token, jnp.asarray(how.stop_ids, jnp.int32))
    return rows._replace(token=token, done=rows.done | ended, said=said)


def next_token(how: Sampling, logits: Array, *, keys: Array) -> tuple[Array, Array]:
    """Return tokens ``[B]`` of the sampling policy and their logps; greedy: no draw."""
    if how.temperature == 0.0:
        return best_token(logits), jnp.zeros(len(logits), jnp.float32)
    warm = logits / how.temperature
    allowed = truncated(warm, top_k=how.top_k, top_p=how.top_p)
    return drawn_token(allowed, keys=keys)
