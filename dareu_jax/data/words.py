"""Which tokens write the same word: behind a space, in capitals, in the plural."""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from dareu_jax.data.tokenizer import Tokenizer

PLURAL = 4
"""Letters of the shortest word whose last s is taken for a plural."""
SPACES = ("\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}", "\N{LOWER ONE EIGHTH BLOCK}")
"""What vocabularies write in the place of a space."""
Spelling = tuple[int, ...]
"""The tokens of a word."""
BROKEN = "\N{REPLACEMENT CHARACTER}"
"""What a token decodes to that holds a part of a letter's bytes."""


class Piece(NamedTuple):
    """What a token writes; whether that is letters or digits, and begins a new word."""

    text: str
    is_letters: bool
    begins: bool


END = Piece("", is_letters=False, begins=True)
"""The end of a text."""


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
        word = word_of(_piece(tokenizer, token).text)
        if word:
            numbers[token] = first.setdefault(word, token)
    numbers.setflags(write=False)  # those who ask again share it
    return numbers


def name_like(tokenizer: Tokenizer, size: int) -> np.ndarray:
    """Return ``[size]`` int32: 2 where a token could be a name, 1: any word, 0: none.

    A name stands behind a space and begins with a capital letter.
    """
    special, found = set(tokenizer.hf.all_special_ids), np.zeros(size, np.int32)
    for token in range(min(size, len(tokenizer.hf))):
        piece = _piece(tokenizer, token)
        bare = piece.text.strip()
        if bare.isalpha() and token not in special:
            found[token] = 2 if piece.begins and bare.istitle() else 1
    return found


def spelled(tokenizer: Tokenizer, ids: Iterable[int]) -> list[tuple[str, Spelling]]:
    """Return the words of a text, bare as `word_of` has them, and the tokens of each.

    Tokens belong together up to a space or a sign.
    """
    found: list[tuple[str, Spelling]] = []
    current: list[int] = []
    ids = [int(token) for token in ids]
    pieces = [_piece(tokenizer, token) for token in ids]
    for token, piece in zip([*ids, -1], [*pieces, END], strict=True):
        if current and piece.begins:
            word = word_of(tokenizer.hf.decode(current))
            found.append((word, tuple(current)))
            current = []
        if piece.is_letters:
            current.append(token)
    return [(word, tokens) for word, tokens in found if word]


@functools.lru_cache(maxsize=2**18)
def _piece(tokenizer: Tokenizer, token: int) -> Piece:
    """Return what a token writes; it is decoded once."""
    text, raw = tokenizer.hf.decode([token]), tokenizer.hf.convert_ids_to_tokens(token)
    bare = text.strip().replace(BROKEN, "")
    is_letters = bare.isalnum() or (not bare and BROKEN in text)
    is_apart = text[:1].isspace() or str(raw).startswith(SPACES)
    return Piece(text, is_letters, is_apart or not is_letters)


def word_of(text: str) -> str:
    """Return the word that a token writes, bare; '' for none."""
    word = text.strip().casefold()
    if not word or BROKEN in word:
        return ""
    is_plural = len(word) >= PLURAL and word.endswith("s") and not word.endswith("ss")
    return word[:-1] if is_plural else word
