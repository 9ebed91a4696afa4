"""Jitted prefill and decoding with a key-value cache."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dareu_jax.models.decoder import Decoder, KVCache
from dareu_jax.models.scoring import logits_of, positions_of

Array = jax.Array


class Rollout(NamedTuple):
    """What was sampled: ``tokens [B, T] int32``, ``mask [B, T] bool``, ``logps``.

    ``logps [B, T]`` float32 are those of the *sampling* policy: after temperature
    and top-p. The mask is true up to and including the end-of-text token.
    """

    tokens: Array
    mask: Array
    logps: Array


def sampling_logits(logits: Array, temperature: float, top_p: float) -> Array:
    """Log-probabilities ``[B, V]`` of the sampling policy.

    ``temperature = 0`` is greedy: all mass on the first maximum. ``top_p < 1`` keeps
    the smallest set of tokens whose mass reaches it (Holtzman et al., 2020).
    """
    if temperature == 0.0:
        best = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=bool)
        return jnp.where(best, 0.0, -jnp.inf)
    logps = jax.nn.log_softmax(logits / temperature, axis=-1)
    if top_p >= 1.0:
        return logps
    order = jnp.argsort(logps, axis=-1, descending=True, stable=True)
    ordered = jnp.take_along_axis(logps, order, axis=-1)
    before = jnp.cumsum(jnp.exp(ordered), axis=-1) - jnp.exp(ordered)
    rank = jnp.argsort(order, axis=-1)
    kept = jnp.take_along_axis(before, rank, axis=-1) < top_p
    kept |= rank == 0  # the best token always stays
    return jax.nn.log_softmax(jnp.where(kept, logps, -jnp.inf), axis=-1)


def sample_token(logps: Array, *, key: Array) -> tuple[Array, Array]:
    """Draws ``[B]`` tokens from ``logps [B, V]``; returns them and their logps."""
    token = jax.random.categorical(key, logps, axis=-1).astype(jnp.int32)
    return token, jnp.take_along_axis(logps, token[:, None], axis=-1)[:, 0]


def next_token(
    logits: Array, temperature: float, top_p: float, *, key: Array
) -> tuple[Array, Array]:
    """Tokens ``[B]`` of the sampling policy and their logps; greedy: no draw."""
    if temperature == 0.0:
        best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return best, jnp.zeros(best.shape, jnp.float32)
    return sample_token(sampling_logits(logits, temperature, top_p), key=key)


@functools.partial(
    jax.jit,
    static_argnames=("model", "max_new_tokens", "temperature", "top_p", "stop_ids"),
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
    top_p: float = 1.0,
) -> Rollout:
    """Samples a response to each prompt; stops when every row has ended.

    Prompts ``[B, P]`` are padded left; temperature 0 is greedy. Any of ``stop_ids``
    ends a text, and the first fills what is behind it, where the mask is false.
    """
    (b, p), t = prompt.shape, max_new_tokens
    cache = KVCache.empty(model.cfg, b, p + t)
    slots = jnp.concatenate([prompt_mask, jnp.zeros((b, t), bool)], axis=1)
    last, cache = _prefill(model, params, prompt, prompt_mask, cache)
    length = jnp.sum(prompt_mask.astype(jnp.int32), axis=1)
    out = Rollout(
        tokens=jnp.full((b, t), stop_ids[0], jnp.int32),
        mask=jnp.zeros((b, t), bool),
        logps=jnp.zeros((b, t), jnp.float32),
    )

    def more(carry):
        i, _, done, *_ = carry
        return (i < t) & ~jnp.all(done)

    def body(carry):
        i, logits, done, slots, cache, out = carry
        step_key = jax.random.fold_in(key, i)
        token, logp = next_token(logits, temperature, top_p, key=step_key)
        out = _write(out, i, token, logp, done, stop_ids[0])
        slots = slots.at[:, p + i].set(~done)
        logits, cache = _decode(
            model, params, out.tokens[:, i], length + i, slots, cache, p + i
        )
        done |= jnp.isin(token, jnp.asarray(stop_ids, jnp.int32))
        return i + 1, logits, done, slots, cache, out

    start = (jnp.int32(0), last, jnp.zeros(b, bool), slots, cache, out)
    return jax.lax.while_loop(more, body, start)[-1]


def _prefill(model, params, prompt, prompt_mask, cache):
    """Fills the cache with the prompt; returns logits ``[B, V]`` of its last token."""
    positions, variables = positions_of(prompt_mask), {"params": params}
    hidden, cache = model.apply(variables, prompt, positions, prompt_mask, cache)
    return logits_of(model, params, hidden[:, -1]), cache


def _decode(model, params, token, position, slots, cache, slot):
    """Runs one token ``[B]`` through the cache; returns logits ``[B, V]``."""
    hidden, cache = model.apply(
        {"params": params}, token[:, None], position[:, None], slots, cache, slot
    )
    return logits_of(model, params, hidden[:, 0]), cache


def _write(out: Rollout, i, token, logp, done, fill: int) -> Rollout:
    return Rollout(
        tokens=out.tokens.at[:, i].set(jnp.where(done, fill, token)),
        mask=out.mask.at[:, i].set(~done),
        logps=out.logps.at[:, i].set(jnp.where(done, 0.0, logp)),
    )
