"""Pure functions from parameters and token batches to logits, log-probs, heads."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from dareu_jax.models.decoder import Decoder, DecoderConfig

Array = jax.Array
LOGITS_AT_ONCE = 2**25
"""Numbers of a batch's logits that exist at the same time: 128 MiB of float32.

A gradient step has several arrays of them. With four times as many, SmolLM2-135M takes
1 GB more for 20 answers of 66 tokens, and about 7 % less time: none is computed again.
"""


Head = functools.partial(nn.Dense, dtype=jnp.float32, kernel_init=nn.initializers.zeros)
"""A linear map on hidden states, float32: the value head, the owner head."""


def apply_head(features: int, params: dict, hidden: Array) -> Array:
    """Float32 outputs ``[..., features]`` of a head on hidden states."""
    return cast(Array, Head(features).apply({"params": params}, hidden))


def init_decoder(model: Decoder, *, key: Array) -> dict:
    """Returns fresh decoder parameters."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    seen = jnp.ones((1, 2), bool)
    variables = model.init(key, tokens, tokens, seen, method="init_all")
    return variables["params"]


def abstract_params(cfg: DecoderConfig) -> Any:
    """Shapes and dtypes of a decoder's parameters; nothing is made."""
    init: Callable = init_decoder
    return jax.eval_shape(lambda key: init(Decoder(cfg), key=key), jax.random.key(0))


@functools.cache
def parameters(cfg: DecoderConfig) -> int:
    """Return how many parameters a decoder has, adapters aside."""
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(cfg)))


def init_head(features: int, embed: int, *, key: Array) -> dict:
    """Returns a zero head: it starts by saying nothing."""
    return Head(features).init(key, jnp.zeros((1, embed), jnp.float32))["params"]


def positions_of(mask: Array) -> Array:
    """Positions ``[B, T]`` that count the true entries of ``mask [B, T]`` from 0."""
    return jnp.maximum(jnp.cumsum(mask.astype(jnp.int32), axis=-1) - 1, 0)


def hidden_states(
    model: Decoder,
    params: dict,
    tokens: Array,
    mask: Array,
    *,
    key: Array | None = None,
    slots: Any = None,
) -> Array:
    """Hidden states ``[B, T, D]`` of ``tokens [B, T]``; dropout is on with a ``key``.

    ``slots`` are what the model's product op reads: `SLOTS` and `HELD` of `layers`.
    """
    rngs = {} if key is None else {"dropout": key}
    variables = {"params": params} | (slots or {})
    hidden, _ = model.apply(variables, tokens, positions_of(mask), mask, rngs=rngs)
    return hidden


def layer_states(
    model: Decoder, params: dict, tokens: Array, mask: Array, layer: int
) -> Array:
    """Return what layers 1 to ``layer`` add up to: ``[B, T, D]``, no final norm."""
    chex.assert_scalar_in(layer, 1, model.cfg.layers)
    first = jax.tree.map(lambda x: x[:layer], params["layers"])
    short = Decoder(model.cfg.first(layer), model.op)
    states, _ = short.apply(
        {"params": {**params, "layers": first}},
        tokens,
        positions_of(mask),
        mask,
        method="stream",
    )
    return states


def whole_text(batch) -> tuple[Array, Array]:
    """Tokens and mask ``[B, P + T]`` of the prompts with their responses behind."""
    tokens = jnp.concatenate([batch.prompt, batch.response], axis=1)
    return tokens, jnp.concatenate([batch.prompt_mask, batch.response_mask], axis=1)


def response_hidden(
    model: Decoder, params: dict, batch, *, key: Array | None = None, slots: Any = None
) -> Array:
    """Hidden states ``[B, T, D]`` that predict each response token.

    Prompts are padded left; ``key`` and ``slots`` as in `hidden_states`.
    """
    hidden = hidden_states(model, params, *whole_text(batch), key=key, slots=slots)
    start = batch.prompt.shape[1] - 1
    return hidden[:, start : start + batch.response.shape[1]]


def logits_of(model: Decoder, params: dict, hidden: Array) -> Array:
    """Float32 logits ``[..., V]`` of hidden states ``[..., D]``."""
    return cast(Array, model.apply({"params": params}, hidden, method="unembed"))


def token_logps(logits: Array, tokens: Array) -> Array:
    """log p(token) ``[B, T]`` float32 from ``logits [B, T, V]``, ``tokens [B, T]``."""
    chex.assert_rank([logits, tokens], [3, 2])
    chex.assert_type(logits, jnp.float32)
    picked = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return picked - jax.nn.logsumexp(logits, axis=-1)


class Trunk(NamedTuple):
    """A decoder's ``hidden [B, T, D]`` at response positions, not yet unembedded."""

    model: Decoder
    params: dict
    hidden: Array


def trunk_of(model: Decoder, params: dict, batch, **how: Any) -> Trunk:
    """`Trunk` of a batch; ``how`` as in `response_hidden`."""
    return Trunk(model, params, response_hidden(model, params, batch, **how))


def response_logps(
    model: Decoder, params: dict, batch, temperature=1.0, **how: Any
) -> Array:
    """log p(y_t | q, y_<t) ``[B, T]`` float32, 0 where the mask is false."""
    trunk = trunk_of(model, params, batch, **how)
    logps = over_logits(token_logps, [trunk], batch.response, temperature)
    return jnp.where(batch.response_mask, logps, 0.0)


def over_logits(
    score: Callable[..., Any], trunks: Sequence[Trunk], tokens: Any, temperature=1.0
) -> Any:
    """``score(logits of each trunk, tokens)`` without the logits ``[B, T, V]``.

    Of the logits over ``temperature`` at most `LOGITS_AT_ONCE` numbers exist at a time,
    in the backward pass too. ``score`` is from float32 ``[B, t, V]`` per trunk and
    tokens ``[B, t]``, or a tree of ``[B, t, ...]``, to a tree of ``[B, t, ...]``.
    """

    def part(tokens: Any, *hidden: Array) -> Any:
        logits = [
            logits_of(trunk.model, trunk.params, states) / temperature
            for trunk, states in zip(trunks, hidden, strict=True)
        ]
        return score(*logits, tokens)

    width = sum(trunk.model.cfg.vocab for trunk in trunks)
    size = positions_at_once(len(trunks[0].hidden), width)
    return over_positions(part, size, tokens, *(trunk.hidden for trunk in trunks))


def positions_at_once(rows: int, width: int) -> int:
    """How many positions of ``rows`` may have ``width`` logits at the same time."""
    return max(1, LOGITS_AT_ONCE // (rows * width))


def over_positions(score: Callable[..., Any], size: int, *arrays: Any) -> Any:
    """``score [B, T, ...]`` of trees of ``[B, T, ...]``, ``size`` positions at a time.

    The backward pass computes each part again.
    """
    b, t = jax.tree.leaves(arrays)[0].shape[:2]
    if size >= t:
        return score(*arrays)

    def parts(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, -t % size), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(b, -1, size, *x.shape[2:]), 1, 0)

    def whole(x: Array) -> Array:
        return jnp.moveaxis(x, 0, 1).reshape(b, -1, *x.shape[3:])[:, :t]

    scored = jax.checkpoint(lambda part: score(*part))
    return jax.tree.map(whole, jax.lax.map(scored, jax.tree.map(parts, arrays)))
