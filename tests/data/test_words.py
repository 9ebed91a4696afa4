"""Tokens that write the same word."""

import numpy as np
import pytest

from dareu_jax.data.words import word_numbers, word_of


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
