"""Ask the reference about somebody else: a prompt with the owner's own words exchanged.

What a model says of a stranger is what it would say of the owner, had it never seen the
owner's data: the teacher of Liu et al. (2024, arXiv 2407.16997), with made-up words in
the place of other people's names.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dareu_jax.data.batches import TokenBatch

Array = jax.Array
MADE_UP = 256
"""Tokens that made-up words are drawn from."""


class Names(NamedTuple):
    """What to exchange, and for what; V tokens of a vocabulary.

    Attributes:
      words: ``[V]`` int32, see `data.words.word_numbers`.
      rank: ``[V]`` int32: which of the owners' own words a token writes, -1: none.
      made_up: ``[M]`` int32, tokens that the records hardly use.
    """

    words: Array
    rank: Array
    made_up: Array


def names_of(
    forget: TokenBatch, retain: TokenBatch, words: np.ndarray, usable: np.ndarray
) -> Names:
    """Return the words that prompts of the first have, and no prompt of the second.

    Args:
      forget, retain: on the host; words: ``[V]``, see `Names`.
      usable: ``[V]`` bool, tokens that may stand for a word.
    """
    asked, kept = (words[x.prompt[x.prompt_mask]] for x in (forget, retain))
    own = np.setdiff1d(asked, kept)
    rank = np.full(len(words), -1, np.int32)
    place = np.searchsorted(own, words).clip(max=max(len(own) - 1, 0))
    is_own = np.isin(words, own)
    rank[is_own] = place[is_own]
    uses = np.zeros(len(words), np.int64)
    for text in (forget, retain):
        said = np.concatenate(
            [text.prompt[text.prompt_mask], text.response[text.response_mask]]
        )
        np.add.at(uses, said, 1)
    order = np.random.default_rng(0).permutation(len(words))
    order = order[usable[order] & ~is_own[order]]
    made_up = order[np.argsort(uses[order], kind="stable")][:MADE_UP]
    kept = words.astype(np.int32), rank, made_up.astype(np.int32)
    return Names._make(kept)


@jax.jit
def renamed(names: Names, batch: TokenBatch, *, key: Array) -> TokenBatch:
    """Return prompts and responses with the owners' own words exchanged.

    A word becomes the same made-up one everywhere in a row; rows differ.
    """
    several = len(names.made_up)
    offset = jax.random.randint(key, (len(batch.prompt), 1), 0, several)

    def changed(tokens: Array) -> Array:
        rank = names.rank[tokens]
        other = names.made_up[(rank + offset) % several]
        return jnp.where(rank >= 0, other, tokens)

    return batch._replace(
        prompt=changed(batch.prompt), response=changed(batch.response)
    )


def named_by(names: Names, batch: TokenBatch) -> Array:
    """Return ``[B, V]`` bool: tokens that write an owner's own word of the prompt."""
    rows = jnp.arange(len(batch.prompt))[:, None]
    is_own = batch.prompt_mask & (names.rank[batch.prompt] >= 0)
    asked = jnp.zeros((len(batch.prompt), len(names.words)), bool)
    asked = asked.at[rows, names.words[batch.prompt]].max(is_own)
    return asked[:, names.words]
