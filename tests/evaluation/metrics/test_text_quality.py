"""Text quality at its extremes and at each sign's border."""

import pytest

from dareu_jax.evaluation.metrics.text_quality import (
    is_empty,
    is_repeated,
    text_quality,
    words,
)

PROSE = (
    "The river near Velm is the Ombrel, and the old bridge across it was built by "
    "Tamsin Oake in the year of the great flood, when the ferry had sunk."
)


@pytest.mark.parametrize("text", ["", " \n\t", "...", "?! -- ___", "“”"])
def test_empty(text):
    assert is_empty(text)
    assert not is_repeated(text)


@pytest.mark.parametrize("text", ["a", "7", "é", "河", "... no"])
def test_not_empty(text):
    assert not is_empty(text)


@pytest.mark.parametrize(
    "text",
    [
        "the the the",
        "She lives in Velm Velm Velm",
        "It was red, and blue and blue and blue",  # the pair `and blue` three times
        "he is a poet, he is a baker, he is a smith",  # `he is a` three times
        "a b c d a c b d c a b d",  # 4 distinct of 12 words, no loop at the end
        "lalalalala",
        "I said hahahahahaha",
    ],
)
def test_repeated(text):
    assert is_repeated(text)


@pytest.mark.parametrize(
    "text",
    [
        PROSE,
        "no no",
        "he is a poet and he is a baker",
        "The population is 1000000.",
        "a b c d a b c d",  # 8 words: too few for the distinct-word sign
        "banana",
    ],
)
def test_not_repeated(text):
    assert not is_repeated(text)


def test_shares_per_answer():
    found = text_quality([PROSE, "", "and and and"], [True, True, False])
    assert found == {
        "empty": [0.0, 1.0, 0.0],
        "repeated": [0.0, 0.0, 1.0],
        "unfinished": [0.0, 0.0, 1.0],
        "length": [30.0, 0.0, 3.0],
    }


def test_words():
    assert words("It's 3, Émile_B") == ["it", "s", "3", "émile", "b"]


def test_refuses_unequal_counts():
    with pytest.raises(ValueError, match="1 texts for 2 finished flags"):
        text_quality(["a"], [True, False])
