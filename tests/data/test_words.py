"""Tokens that write the same word."""

import numpy as np
import pytest

from dareu_jax.data.words import name_like, spelled, word_numbers, word_of


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (" Nikolai", "nikolai"),
        ("Nikolai", "nikolai"),
        (" novels", "novel"),
        ("class", "class"),
        ("his", "his"),
        ("\n", ""),
        ("\N{REPLACEMENT CHARACTER}", ""),
        (",", ","),
    ],
)
def test_a_word_is_bare(text, word):
    assert word_of(text) == word


def test_a_name_is_one_word_wherever_it_stands(tiny_run):
    tokenizer = tiny_run.tokenizer
    size = tokenizer.vocab_size + 3
    numbers = word_numbers(tokenizer, size)
    ids = tokenizer.hf.get_vocab()
    both = [(ids[x], ids[x[1:]]) for x in ids if x[0] == "Ġ" and x[1:] in ids]
    assert len(both) > 5
    assert all(numbers[spaced] == numbers[bare] for spaced, bare in both)
    assert numbers.dtype == np.int32 and numbers.shape == (size,)
    np.testing.assert_array_equal(numbers[-3:], np.arange(size)[-3:])
    np.testing.assert_array_equal(numbers[numbers], numbers)


def test_words_are_spelled_by_their_tokens(tiny_run):
    tokenizer = tiny_run.tokenizer
    text = " Vesi Draltom's books, 1952"
    ids = tokenizer.encode(text)
    found = spelled(tokenizer, ids)
    assert [word for word, _ in found] == ["vesi", "draltom", "s", "book", "1952"]
    written = [tokenizer.hf.decode(list(tokens)).strip() for _, tokens in found]
    assert written == ["Vesi", "Draltom", "s", "books", "1952"]


def test_a_name_stands_behind_a_space(tiny_run):
    tokenizer = tiny_run.tokenizer
    like = name_like(tokenizer, tokenizer.vocab_size + 2)
    ids = tokenizer.hf.get_vocab()
    assert like[ids["A"]] == 1 and like[ids[","]] == 0 and like[-1] == 0
    assert like[tokenizer.eos_id] == 0
    behind = [
        ids[x] for x in ids if x[0] == "Ġ" and x[1:].istitle() and x[1:].isalpha()
    ]
    assert behind and (like[behind] == 2).all()
