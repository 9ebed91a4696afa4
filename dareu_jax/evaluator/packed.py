"""Given answers token by token; those of one question share a row, it is read once."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dareu_jax.attributor.model import Model
from dareu_jax.models import Decoder, over_logits
from dareu_jax.models.scoring import Trunk
from dareu_jax.parallel import on_host

MOST = 192
"""Tokens of a row with several answers; attention grows with its square."""
MULTIPLE = 32
"""Of the tokens of a batch's rows: few lengths, few compilations."""
Tokens = Sequence[int]
NEAR = 1e-5
"""Nats: logits that are closer may change places with the order of sums."""
PROMPT, PADDING = 0, -1
"""In the place of an answer's number."""
Array = jax.Array


class Packed(NamedTuple):
    """B rows of a prompt with answers behind it, ``[B, S]`` int32.

    Attributes:
      tokens: prompt, first answer, second answer ..., padding.
      answer: the number of a token's answer from 1, `PROMPT` or `PADDING`.
      position: in its own text, that is of the prompt and one answer.
      before: the place of the token before it in that text.
    """

    tokens: Any
    answer: Any
    position: Any
    before: Any


class Said(NamedTuple):
    """Of given tokens ``[T]``: log p, and whether greedy decoding says it there."""

    logps: Any
    hits: Any


def rows_of(
    prompts: Sequence[Tokens], answers: Sequence[Tokens], most: int
) -> list[list[int]]:
    """The pairs of every row: all of one prompt, so many tokens or a single answer."""
    rows: list[list[int]] = []
    filled: list[int] = []
    last: dict[tuple[int, ...], int] = {}
    for pair, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        at = last.get(tuple(prompt))
        if at is None or filled[at] + len(answer) > most:
            at = last[tuple(prompt)] = len(rows)
            rows.append([])
            filled.append(len(prompt))
        rows[at].append(pair)
        filled[at] += len(answer)
    return rows


def packed(rows: Sequence[tuple[Tokens, Sequence[Tokens]]], width: int) -> Packed:
    """Rows of a prompt and its answers, as arrays."""
    shape = len(rows), width
    out = Packed(*(np.zeros(shape, np.int32) for _ in Packed._fields))
    out.answer[:] = PADDING
    for row, (prompt, answers) in enumerate(rows):
        at, start = 0, len(prompt)
        for number, text in enumerate([prompt, *answers]):
            end, first = at + len(text), start if number else 0
            out.tokens[row, at:end] = text
            out.answer[row, at:end] = number
            out.position[row, at:end] = first + np.arange(len(text))
            out.before[row, at:end] = np.arange(at, end) - 1
            out.before[row, at] = max(first - 1, 0)
            at = end
    return out


@functools.partial(jax.jit, static_argnames="model")
def say(model: Decoder, params: dict, batch: Packed) -> Said:
    """`Said` ``[B, S]`` of every token of the answers; where no answer is, anything."""
    key, query = batch.answer[:, None, :], batch.answer[:, :, None]
    visible = jnp.tril((key == query) | (key == PROMPT))
    hidden, _ = model.apply({"params": params}, batch.tokens, batch.position, visible)
    hidden = jnp.take_along_axis(hidden, batch.before[..., None], axis=1)
    return over_logits(said, [Trunk(model, params, hidden)], batch.tokens)


def said(logits: Array, tokens: Array) -> Said:
    """log p ``[B, T]``; a hit is a token clearly above all others of ``[B, T, V]``.

    Where another is all but as high (by `NEAR`) decoding may say that one: no hit.
    """
    own = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    largest = jnp.max(logits, axis=-1, keepdims=True)
    as_high = jnp.sum(jnp.exp((logits - largest) / NEAR), axis=-1)
    return Said(
        logps=own - jax.nn.logsumexp(logits, axis=-1),
        hits=(own == largest[..., 0]) & (as_high < 1.1),
    )


def said_tokens(
    model: Model, prompts: Sequence[Tokens], answers: Sequence[Tokens], batch_size: int
) -> list[Said]:
    """What the model says of every token of N answers to N prompts.

    Args:
      prompts, answers: N lists of tokens; batch_size: answers at a time.
    """
    window = model.decoder.cfg.sliding_window
    rows = rows_of(prompts, answers, min(MOST, window or MOST))
    texts = [(prompts[row[0]], [answers[n] for n in row]) for row in rows]
    length = [len(prompt) + sum(map(len, own)) for prompt, own in texts]
    size = model.rows(max(1, batch_size // max(map(len, rows))))
    order = np.argsort(length, kind="stable")
    out: dict[int, Said] = {}
    with jax.set_mesh(model.mesh):
        for start in range(0, len(rows), size):
            own = order[np.arange(start, start + size) % len(rows)]
            width = -(-max(length[n] for n in own) // MULTIPLE) * MULTIPLE
            batch = model.place(packed([texts[n] for n in own], width))
            found = on_host(say(model.decoder, model.params, batch))
            for row, n in enumerate(own):
                out |= zip(rows[n], taken_apart(found, row, *texts[n]))
    return [out[pair] for pair in range(len(answers))]


def taken_apart(
    found: Said, row: int, prompt: Tokens, answers: Sequence[Tokens]
) -> Iterator[Said]:
    """A row's answers, one after the other."""
    at = len(prompt)
    for answer in answers:
        end = at + len(answer)
        yield Said(found.logps[row, at:end], found.hits[row, at:end])
        at = end
