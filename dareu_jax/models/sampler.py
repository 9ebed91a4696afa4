"""Jitted prefill and decoding with a key-value cache."""

import functools
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp

from dareu_jax.models.decoder import Decoder, KVCache
from dareu_jax.models.next_token import best_token, drawn_token, truncated
from dareu_jax.models.scoring import logits_of, positions_of
from dareu_jax.parallel import batch_devices

Array = jax.Array
SMALL = 8
"""Rows of a batch from which on the half that goes on is decoded by itself."""


class Rollout(NamedTuple):
    """What was sampled: ``tokens [B, T] int32``, ``mask [B, T] bool``, ``logps``.

    ``logps [B, T]`` float32 are those of the *sampling* policy: after temperature,
    top-k and top-p. The mask is true up to and including the end-of-text token.
    """

    tokens: Array
    mask: Array
    logps: Array


class Sampling(NamedTuple):
    """How a token is chosen, by default the likeliest, and which end a text."""

    stop_ids: tuple[int, ...]
    temperature: float = 0.0
    top_k: int = 0  # 0: all tokens
    top_p: float = 1.0


class Rows(NamedTuple):
    """The rows that are being decoded, b of the B in the batch.

    Attributes:
      place: ``[b]``, where a row stands in the batch.
      keys: ``[b, T]``, of the random numbers of each of its tokens.
      length: ``[b]``, tokens of its prompt.
      token: ``[b]``, its last token; done: ``[b]`` bool, whether that ended it.
      slots: ``[b, P + T]`` bool, which of the cache's are its own.
      said: what they have said, ``[b, T]``.
    """

    place: Array
    keys: Array
    length: Array
    token: Array
    done: Array
    slots: Array
    said: Rollout


class State(NamedTuple):
    """Of a loop over tokens: the next one's number ``i``, the rows and their cache."""

    i: Array
    rows: Rows
    cache: KVCache


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
    numbers: Array | None = None,
) -> Rollout:
    """Sample a response to each prompt; stop when every row has ended.

    Prompts ``[B, P]`` are padded left; temperature 0 is greedy. Any of ``stop_ids``
    ends a text, and the first fills what is behind it, where the mask is false. A row
    draws by ``key`` and its number in ``numbers [B]``, by default its place in the
    batch: its answer does not depend on the other rows.
    """
    how = Sampling(stop_ids, temperature, top_k, top_p)
    b, t = len(prompt), max_new_tokens
    logits, cache = _prefill(model, params, prompt, prompt_mask, t)
    place = jnp.arange(b, dtype=jnp.int32)
    numbers = place if numbers is None else numbers
    rows = Rows(
        place=place,
        keys=_keys_of(key, numbers, t),
        length=jnp.sum(prompt_mask.astype(jnp.int32), axis=1),
        token=jnp.zeros(b, jnp.int32),
        done=jnp.zeros(b, bool),
        slots=jnp.concatenate([prompt_mask, jnp.zeros((b, t), bool)], axis=1),
        said=_nothing(b, t, stop_ids[0]),
    )
    state = State(jnp.int32(1), _say(how, logits, rows, jnp.int32(0)), cache)
    half = half_of(b)
    state = _decode_while(model, params, how, state, fewest=half)
    if half == 0:
        return state.rows.said
    rest = _first_to_go_on(state, half)
    rest = _decode_while(model, params, how, rest, fewest=0)
    return _put(rest.rows, state.rows.said)


def half_of(rows: int) -> int:
    """Return how many rows go on by themselves when the others have ended; 0: none.

    None of a small batch, and none where devices have rows of their own, which would
    have to move.
    """
    parts = batch_devices(jax.sharding.get_abstract_mesh())
    return rows // 2 if parts == 1 and rows >= SMALL else 0


def _prefill(
    model: Decoder, params: dict, prompt: Array, prompt_mask: Array, new: int
) -> tuple[Array, KVCache]:
    """Return logits ``[B, V]`` of the last token, and a cache with room for ``new``."""
    b, p = prompt.shape
    empty = KVCache.empty(model.cfg, b, p + new)
    positions, variables = positions_of(prompt_mask), {"params": params}
    hidden, cache = model.apply(variables, prompt, positions, prompt_mask, empty)
    return logits_of(model, params, hidden[:, -1]), cast(KVCache, cache)


def _keys_of(key: Array, numbers: Array, t: int) -> Array:
    """Return keys ``[B, T]``: of a row by its number, of a token by its place."""
    own = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, numbers)
    places = jnp.arange(t, dtype=jnp.int32)
    return jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(own, places)


def _nothing(b: int, t: int, fill: int) -> Rollout:
    """Return the `Rollout` in which no row has said a token."""
    return Rollout(
        tokens=jnp.full((b, t), fill, jnp.int32),
        mask=jnp.zeros((b, t), bool),
        logps=jnp.zeros((b, t), jnp.float32),
    )


def _first_to_go_on(state: State, size: int) -> State:
    """Keep ``size`` of the rows: those that have not ended, and others behind."""
    kept = jnp.argsort(state.rows.done, stable=True)[:size]
    rows = jax.tree.map(lambda x: x[kept], state.rows)
    cache = jax.tree.map(lambda x: jnp.take(x, kept, axis=1), state.cache)
    return State(state.i, rows, cache)


def _put(rows: Rows, whole: Rollout) -> Rollout:
    """Return ``whole [B, T]`` with what some of its rows have said since."""
    return jax.tree.map(lambda x, own: x.at[rows.place].set(own), whole, rows.said)


def _decode_while(
    model: Decoder, params: dict, how: Sampling, state: State, *, fewest: int
) -> State:
    """Decode token after token while more than ``fewest`` rows have not ended."""
    t = state.rows.said.tokens.shape[1]

    def more(state: State) -> Array:
        return (state.i < t) & (jnp.sum(~state.rows.done) > fewest)

    def body(state: State) -> State:
        logits, rows, cache = _decode(model, params, state)
        rows = _say(how, logits, rows, state.i)
        return State(state.i + 1, rows, cache)

    return jax.lax.while_loop(more, body, state)


def _decode(model: Decoder, params: dict, state: State) -> tuple[Array, Rows, KVCache]:
    """Run the last token; return logits ``[b, V]`` of the next."""
    rows, last = state.rows, state.i - 1
    slot = rows.slots.shape[1] - rows.said.tokens.shape[1] + last
    rows = rows._replace(slots=rows.slots.at[:, slot].set(True))
    hidden, cache = model.apply(
        {"params": params},
        rows.token[:, None],
        (rows.length + last)[:, None],
        rows.slots,
        state.cache,
        slot,
    )
    return logits_of(model, params, hidden[:, 0]), rows, cast(KVCache, cache)


def _say(how: Sampling, logits: Array, rows: Rows, i: Array) -> Rows:
    """Choose token ``i`` of every row, and write it down where the row goes on."""
    token, logp = next_token(how, logits, keys=rows.keys[:, i])
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
