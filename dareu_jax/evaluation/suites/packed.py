"""Log-probabilities of given answers; what texts have in common is computed once."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dareu_jax.models import Decoder, Trunk, over_logits, token_logps
from dareu_jax.models.loaded import LoadedModel
from dareu_jax.parallel import on_host

MOST = 192
"""Tokens of a row with several texts; attention grows with its square."""
MULTIPLE = 32
"""Of the tokens of a batch's rows: few lengths, few compilations."""
NEAR = 1e-5
"""Nats: logits that are closer may change places with the order of sums."""
Array = jax.Array
Tokens = Sequence[int]


class Packed(NamedTuple):
    """B rows, each the prefix tree of some texts, depth first, ``[B, S]`` int32.

    A token sees those before it whose ``end`` is behind it: its own text's.

    Attributes:
      tokens: of the tree, padding behind.
      position: in the text; before: the place of the token before it there.
      end: the place behind all texts that go on from this token, 0 for padding.
    """

    tokens: Any
    position: Any
    before: Any
    end: Any


class Tree(NamedTuple):
    """The prefix tree of a row's texts: columns of `Packed`, and where each text is.

    Attributes:
      columns: ``[4, S]``; texts: which ones; paths: their tokens' places, of each.
    """

    columns: np.ndarray
    texts: list[int]
    paths: list[list[int]]


class Said(NamedTuple):
    """Of given tokens ``[T]``: log p, and whether greedy decoding says it there."""

    logps: Any
    hits: Any


def in_common(one: Tokens, other: Tokens) -> int:
    """Return how many first tokens two texts share."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


def rows_of(texts: Sequence[list[int]], most: int) -> Iterator[list[int]]:
    """Return texts in alphabetical order, at most ``most`` tree tokens a group."""
    row: list[int] = []
    filled = 0
    for n in sorted(range(len(texts)), key=lambda n: texts[n]):
        more = len(texts[n]) - (in_common(texts[row[-1]], texts[n]) if row else 0)
        if row and filled + more > most:
            yield row
            row, filled, more = [], 0, len(texts[n])
        row.append(n)
        filled += more
    if row:
        yield row


def tree_of(texts: Sequence[list[int]], row: list[int]) -> Tree:
    """Return the prefix tree of a row of `rows_of`."""
    columns: list[list[int]] = []
    paths: list[list[int]] = []
    last: Tokens = []
    for n in row:
        text, shared = texts[n], in_common(last, texts[n])
        path = paths[-1][:shared] if paths else []
        for place in path:
            columns[place][3] += len(text) - shared
        for depth in range(shared, len(text)):
            place = len(columns)
            before = path[-1] if path else 0
            columns.append([text[depth], depth, before, place + len(text) - depth])
            path.append(place)
        paths.append(path)
        last = text
    return Tree(np.asarray(columns, np.int32).T, row, paths)


def packed(trees: Sequence[Tree], width: int) -> Packed:
    """Return trees as rows of ``width`` tokens."""
    out = np.zeros((4, len(trees), width), np.int32)
    for row, tree in enumerate(trees):
        out[:, row, : tree.columns.shape[1]] = tree.columns
    return Packed(*out)


@functools.partial(jax.jit, static_argnames="model")
def say(model: Decoder, params: dict, batch: Packed) -> Said:
    """Return `Said` ``[B, S]`` of every token; a text's first has no meaning."""
    variables = {"params": params}
    hidden, _ = model.apply(variables, batch.tokens, batch.position, batch.end)
    hidden = jnp.take_along_axis(hidden, batch.before[..., None], axis=1)
    return over_logits(said, [Trunk(model, params, hidden)], batch.tokens)


def said(logits: Array, tokens: Array) -> Said:
    """Return log p ``[B, T]``, and hits: tokens clearly above all others.

    Where another is all but as high (by `NEAR`) decoding may say that one: no hit.
    """
    own = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    largest = jnp.max(logits, axis=-1, keepdims=True)
    as_high = jnp.sum(jnp.exp((logits - largest) / NEAR), axis=-1)
    return Said(
        logps=token_logps(logits, tokens),
        hits=(own == largest[..., 0]) & (as_high < 1.1),
    )


def said_tokens(
    model: LoadedModel,
    prompts: Sequence[Tokens],
    answers: Sequence[Tokens],
    batch_size: int,
) -> list[Said]:
    """Return log p and hits of every token of N answers to N prompts."""
    texts = [[*pair[0], *pair[1]] for pair in zip(prompts, answers, strict=True)]
    most = min(MOST, model.decoder.cfg.sliding_window or MOST)
    trees = [tree_of(texts, row) for row in rows_of(texts, most)]
    trees.sort(key=lambda tree: tree.columns.shape[1])
    size = model.rows(max(1, batch_size * len(trees) // len(texts)))
    out: dict[int, Said] = {}
    with jax.set_mesh(model.mesh):
        for start in range(0, len(trees), size):
            own = [trees[n % len(trees)] for n in range(start, start + size)]
            width = -(-max(x.columns.shape[1] for x in own) // MULTIPLE) * MULTIPLE
            batch = model.place(packed(own, width))
            found = on_host(say(model.decoder, model.params, batch))
            model.counted(sum(len(tree.texts) for tree in own))
            for row, tree in enumerate(own):
                for n, path in zip(tree.texts, tree.paths, strict=True):
                    places = path[len(prompts[n]) :]
                    out[n] = Said(found.logps[row, places], found.hits[row, places])
    return [out[pair] for pair in range(len(answers))]
