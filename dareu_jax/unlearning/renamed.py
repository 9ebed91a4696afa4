"""Ask the reference about somebody else: a prompt with the owner's own words exchanged.

What a model says of a stranger is what it would say of the owner, had it never seen the
owner's data: the teacher of Liu et al. (2024, arXiv 2407.16997), with made-up words in
the place of other people's names.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dareu_jax.data.batches import TokenBatch

Array = jax.Array
MADE_UP = 256
"""Tokens that made-up words are drawn from."""
NONE = -1
"""Behind the last token of a word."""


class Names(NamedTuple):
    """Words to exchange, and for what; V tokens of a vocabulary.

    Attributes:
      numbers: ``[V]`` int32, see `data.words.word_numbers`.
      own: ``[W, L]`` int32, the owners' own words by the numbers of their tokens.
      made_up: ``[M]`` int32, tokens that the records hardly use.
    """

    numbers: Array
    own: Array
    made_up: Array


def names_of(
    own: Sequence[tuple[int, ...]],
    numbers: np.ndarray,
    name_like: np.ndarray,
    uses: np.ndarray,
) -> Names:
    """Return words to exchange for the tokens that are used least.

    Args:
      own: tokens of each word; numbers: ``[V]``, see `Names`.
      name_like: ``[V]``, see `data.words.name_like`; uses: ``[V]``, how often records
        have each token.
    """
    spellings = sorted({tuple(numbers[list(word)].tolist()) for word in own})
    longest = max(map(len, spellings), default=1)
    table = np.full((max(len(spellings), 1), longest), NONE, np.int32)
    for row, spelling in enumerate(spellings):
        table[row, : len(spelling)] = spelling
    order = np.random.default_rng(0).permutation(len(numbers))
    order = order[(name_like[order] > 0) & ~np.isin(numbers[order], table)]
    made_up = order[np.lexsort((-name_like[order], uses[order]))][:MADE_UP]
    kept = numbers.astype(np.int32), table, made_up.astype(np.int32)
    return Names._make(kept)


def own_words(names: Names, tokens: Array, mask: Array) -> Array:
    """Return ``[B, S]`` int32: which piece of an own word each token is, `NONE`: none.

    ``tokens [B, S]``; pieces of all words are counted through.
    """
    count, longest = names.own.shape
    s = tokens.shape[1]
    said = jnp.where(mask, names.numbers[tokens], NONE - 1)
    said = jnp.pad(said, ((0, 0), (0, longest)), constant_values=NONE - 1)
    begins = jnp.full((len(tokens), s, count), True)
    for k in range(longest):
        here = said[:, k : k + s, None] == names.own[:, k]
        begins &= here | (names.own[:, k] == NONE)
    begins &= names.own[:, 0] != NONE
    piece = jnp.full(tokens.shape, NONE, jnp.int32)
    number = jnp.arange(count, dtype=jnp.int32) * longest
    for k in range(longest):
        is_long = begins & (names.own[:, k] != NONE)
        found = jnp.max(jnp.where(is_long, number + k, NONE), axis=-1)
        found = jnp.pad(found, ((0, 0), (k, 0)), constant_values=NONE)[:, :s]
        piece = jnp.maximum(piece, found)
    return piece


@jax.jit
def renamed(names: Names, batch: TokenBatch, *, key: Array) -> TokenBatch:
    """Return prompts and responses with the owners' own words exchanged.

    A word becomes the same made-up one everywhere in a row; rows differ.
    """
    several = len(names.made_up)
    offset = jax.random.randint(key, (len(batch.prompt), 1), 0, several)

    def changed(tokens: Array, mask: Array) -> Array:
        piece = own_words(names, tokens, mask)
        other = names.made_up[(piece + offset) % several]
        return jnp.where(piece == NONE, tokens, other)

    return batch._replace(
        prompt=changed(batch.prompt, batch.prompt_mask),
        response=changed(batch.response, batch.response_mask),
    )


def named_by(names: Names, batch: TokenBatch) -> Array:
    """Return ``[B, V]`` bool: tokens that write pieces of own words of the prompt."""
    rows = jnp.arange(len(batch.prompt))[:, None]
    is_own = own_words(names, batch.prompt, batch.prompt_mask) != NONE
    asked = jnp.zeros((len(batch.prompt), len(names.numbers)), bool)
    asked = asked.at[rows, names.numbers[batch.prompt]].max(is_own)
    return asked[:, names.numbers]
