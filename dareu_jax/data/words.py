"""Which tokens write the same word: behind a space, in capitals, in the plural."""

import functools

import numpy as np

from dareu_jax.data.tokenizer import Tokenizer

PLURAL = 4
"""Letters of the shortest word whose last s is taken for a plural."""
BROKEN = "\N{REPLACEMENT CHARACTER}"
"""What a token decodes to that holds a part of a letter's bytes."""


@functools.lru_cache(maxsize=4)
def word_numbers(tokenizer: Tokenizer, size: int) -> np.ndarray:
    """Return ``[size]`` int32: the first token that writes the same word as each does.

    Tokens that write no word, as space and parts of a letter, stand for themselves; so
    do rows of the model behind the tokenizer's last token.
    """
    numbers = np.arange(size, dtype=np.int32)
    first: dict[str, int] = {}
    known = min(size, len(tokenizer.hf))
    for token in range(known):
        word = word_of(tokenizer.hf.decode([token]))
        if word:
            numbers[token] = first.setdefault(word, token)
    numbers.setflags(write=False)  # those who ask again share it
    return numbers


def writes_a_word(tokenizer: Tokenizer, size: int) -> np.ndarray:
    """Return ``[size]`` bool: tokens that write letters alone, and are not special."""
    special = set(tokenizer.hf.all_special_ids)
    usable = np.zeros(size, bool)
    for token in range(min(size, len(tokenizer.hf))):
        word = word_of(tokenizer.hf.decode([token]))
        usable[token] = word.isalpha() and token not in special
    return usable


def word_of(text: str) -> str:
    """Return the word that a token writes, bare; '' for none."""
    word = text.strip().casefold()
    if not word or BROKEN in word:
        return ""
    is_plural = len(word) >= PLURAL and word.endswith("s") and not word.endswith("ss")
    return word[:-1] if is_plural else word
