"""Kernel `watermark`: DA(i, y) = p(code of i | y), codes learned from marked text.

WASA (Lu et al., ACL Findings 2025) inserts the code of its owner into every training
text; a causal LM with a decoder head for the code's symbols learns to go on with it.
Here the code is a run of ids beyond the vocabulary, at the end of a response or, with
``classifier.train_on: prefixes``, at a place drawn anew at every step. Its symbols look
at the text before it, but no text looks at symbols: hidden states are those of unmarked
text, so one pass over a response scores every prefix. Unlike WASA, the text itself is
not learned, only its codes; the head has a projection for each of the code's places and
reads earlier symbols through embeddings of its own, not through the LM's layers; the
place is no sentence chosen by TF-IDF.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from dareu_jax.attribution.kernel import OWNERS, Kernel, OwnerBatch, Setup, options_of
from dareu_jax.attribution.kernels.classifier import (
    ClassifierState,
    classes_of,
    trained,
)
from dareu_jax.config import Section
from dareu_jax.data.batches import TokenBatch
from dareu_jax.errors import UserError
from dareu_jax.models import Decoder, apply_head, hidden_states, init_head
from dareu_jax.parallel import table_axes
from dareu_jax.registry import KERNELS

Array = jax.Array


def codes(owners: int, length: int, symbols: int, seed: int) -> np.ndarray:
    """Return a code of M symbols out of S for each of O owners, ``[O, M]`` int32.

    Any K places in a row, from a multiple of K on, tell all owners apart, K the fewest
    that can: two codes differ in at least M // K places, in all M where O <= S.

    Raises:
      UserError: there are fewer than O codes.
    """
    needed = 1
    while symbols**needed < owners:
        needed += 1
    if length < needed:
        raise UserError(
            f"attribution.watermark.length = {length} with {symbols} symbols gives "
            f"{symbols**length} codes, fewer than the {owners} owners; set it to "
            f"{needed} or more"
        )
    rng, out = np.random.default_rng(seed), np.zeros((owners, length), np.int32)
    for place in range(length):
        block = out[:, place - place % needed : place]
        order = np.lexsort((rng.permutation(owners), *block.T))
        out[order, place] = rng.permutation(symbols)[np.arange(owners) % symbols]
    return out


def mark(batch: TokenBatch, code: Array, at: Array) -> tuple[TokenBatch, Array]:
    """Insert codes behind the first ``at[b]`` tokens of the responses ``[B, T]``.

    Args:
      code: ``[B, M]`` int32 token ids; a row of -1: the response stays as it is.

    Returns:
      The batch with responses ``[B, T + M]``, and which of them are symbols.
    """
    width, length = batch.response.shape[1], code.shape[1]
    begin = jnp.where(code[:, 0] < 0, width, at)[:, None]
    t = jnp.arange(width + length, dtype=jnp.int32)[None]
    row = jnp.clip(jnp.where(t < begin, t, t - length), 0, width - 1)
    text, real = (
        jnp.take_along_axis(x, row, axis=1)
        for x in (batch.response, batch.response_mask)
    )
    symbol = jnp.take_along_axis(code, jnp.clip(t - begin, 0, length - 1), axis=1)
    inside = (t >= begin) & (t < begin + length)
    response = jnp.where(inside, jnp.maximum(symbol, 0), text)
    places = inside & (symbol >= 0)
    mask = places | (real & ~inside)
    return batch._replace(response=response, response_mask=mask), places


def cuts(mask: Array, train_on: str, *, key: Array) -> Array:
    """Return the tokens before the code, ``[B]`` int32: all, or drawn from 1 on."""
    length = jnp.sum(mask.astype(jnp.int32), axis=1)
    if train_on == "whole":
        return length
    return jax.random.randint(key, length.shape, 1, length + 1, dtype=jnp.int32)


def init_decoder_head(length: int, symbols: int, embed: int, *, key: Array) -> dict:
    """Return zeros: projections to the symbols of every place, and their embeddings.

    With zeros no symbol is special, so that owners <= symbols may change columns.
    """
    rows = length * symbols
    return {
        "code_head": init_head(rows, embed, key=key),
        "symbols": {"embedding": jnp.zeros((rows, embed), jnp.float32)},
    }


def code_logps(params: dict, hidden: Array, code: Array) -> Array:
    """Return log p(code | text), the sum over m of log p(s_m | h, s_1 .. s_(m-1)).

    The logits of place m are W_m (h + sum_(j<m) E_j[s_j]) + b_m.

    Args:
      params: of `init_decoder_head`.
      hidden: ``[..., D]`` states h at the end of the text; code: ``[..., M]`` int32
        symbols; leading axes are broadcast.

    Returns:
      ``[...]`` float32, at most 0.
    """
    head, table = params["code_head"], params["symbols"]["embedding"]
    length = code.shape[-1]
    symbols = len(table) // length
    first = symbols * jnp.arange(length, dtype=jnp.int32)
    own = table[code + first]  # [..., M, D]
    earlier = jnp.cumsum(own, axis=-2) - own
    kernel = head["kernel"].reshape(-1, length, symbols)
    moved = jnp.einsum("...md,dms->...ms", earlier, kernel)
    straight = apply_head(len(table), head, hidden)
    straight = straight.reshape(*hidden.shape[:-1], length, symbols)

    def add(total: Array, of_place: tuple[Array, Array, Array]):
        here, shift, symbol = of_place
        logits = here + shift  # [..., S]
        is_it = jax.nn.one_hot(symbol, symbols, dtype=jnp.float32)
        picked = jnp.sum(logits * is_it, axis=-1)
        return total + picked - jax.nn.logsumexp(logits, axis=-1), None

    by_place = jnp.moveaxis(straight, -2, 0), jnp.moveaxis(moved, -2, 0)
    shape = jnp.broadcast_shapes(hidden.shape[:-1], code.shape[:-1])
    none = jnp.zeros(shape, jnp.float32)
    return jax.lax.scan(add, none, (*by_place, jnp.moveaxis(code, -1, 0)))[0]


def read_marks(
    model: Decoder,
    params: dict,
    marked: TokenBatch,
    places: Array,
    *,
    length: int,
    key: Array | None,
) -> tuple[Array, Array]:
    """Return the states before the codes of marked text, and the codes.

    Args:
      params: of the decoder; marked, places: of `mark`; length: M.
      key: dropout is on with one.

    Returns:
      States ``[B, D]`` of the last tokens before the codes, for which no text sees a
      symbol, and the codes ``[B, M]`` int32, rows of -1 where there are none.
    """
    tokens = jnp.where(places, 0, marked.response)
    hidden = hidden_states(
        model, params, tokens, marked.response_mask & ~places, key=key
    )
    first = jnp.argmax(places, axis=1).astype(jnp.int32)[:, None]
    state = jnp.take_along_axis(hidden, jnp.maximum(first - 1, 0)[..., None], axis=1)
    rows = first + jnp.arange(length, dtype=jnp.int32)
    symbols = jnp.take_along_axis(marked.response, rows, axis=1) - model.cfg.vocab
    return state[:, 0], jnp.where(places.any(axis=1)[:, None], symbols, -1)


def code_loss(
    params: dict, hidden: Array, code: Array, book: Array
) -> tuple[Array, Array]:
    """Return -log p(code | text) in nats, and the accuracy of the likeliest code.

    Args:
      params: of `init_decoder_head`; hidden, code: of `read_marks`; no code weighs 0.
      book: ``[O, M]`` int32, every owner's.
    """
    weight = (code[:, 0] >= 0).astype(jnp.float32)
    total = jnp.maximum(jnp.sum(weight), 1.0)
    loss = -code_logps(params, hidden, jnp.maximum(code, 0))
    best = jnp.argmax(code_logps(params, hidden[:, None], book), axis=-1)
    hit = jnp.all(book[best] == code, axis=-1).astype(jnp.float32)
    return jnp.sum(loss * weight) / total, jnp.sum(hit * weight) / total


class WatermarkOptions(Section):
    """The section ``attribution.watermark``."""

    symbols: int = Field(6, ge=2, le=1024)  # WASA (Lu et al., 2025)
    length: int = Field(10, ge=1, le=64)  # WASA; symbols of an owner's code


def axes(tree: Any) -> Any:
    """Return the axes of an accumulator, or of an index, which has codes too."""
    if isinstance(tree, ClassifierState):
        return table_axes(tree)
    trained = {name: part for name, part in tree.items() if name != "codes"}
    return {**table_axes(trained), "codes": (OWNERS, "symbols")}


def watermark_loss(
    model: Decoder,
    train_on: str,
    book: np.ndarray,
    params: dict,
    batch: OwnerBatch,
    key: Array,
) -> tuple[Array, Array]:
    """Return `code_loss` of labelled responses marked with codes; dropout is on."""
    symbols = jnp.asarray(book)[jnp.maximum(batch.owner, 0)] + model.cfg.vocab
    given = jnp.where(batch.owner[:, None] < 0, -1, symbols)
    at = cuts(batch.text.response_mask, train_on, key=jax.random.fold_in(key, 2))
    marked, places = mark(batch.text, given, at)
    decoder, length = params["decoder"], book.shape[1]
    hidden, code = read_marks(model, decoder, marked, places, length=length, key=key)
    return code_loss(params, hidden, code, jnp.asarray(book))


@KERNELS.register(
    "watermark",
    "p(owner's code | response) of an LM of marked text",
    options=WatermarkOptions,
)
def make_watermark(setup: Setup) -> Kernel:
    """Return the kernel: ``setup.classifier`` over ``setup.backbone``.

    Scores are p(code of o | prefix) over the sum of all owners' (and nobody's).
    """
    backbone, own = setup.backbone, options_of(setup, "watermark")
    seed = setup.cfg.projection_seed
    book = codes(classes_of(setup), own.length, own.symbols, seed)

    def heads(key: Array) -> dict:
        return init_decoder_head(own.length, own.symbols, backbone.cfg.embed, key=key)

    def prefix_score(params, index, queries: TokenBatch) -> Array:
        hidden = hidden_states(
            backbone, index["decoder"], queries.response, queries.response_mask
        )
        logps = code_logps(index, hidden[:, :, None], index["codes"])
        return jax.nn.softmax(logps, axis=-1)[..., : setup.owners]

    how = backbone, setup.classifier.train_on, book
    kernel = trained(
        setup,
        name="watermark",
        heads=heads,
        loss_of=functools.partial(watermark_loss, *how),
        prefix_score=prefix_score,
        axes=axes,
        adds_up=False,
    )

    def finalize(params, acc: ClassifierState) -> dict:
        return {**kernel.finalize(params, acc), "codes": jnp.asarray(book)}

    return dataclasses.replace(kernel, finalize=finalize)
