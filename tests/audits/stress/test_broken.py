"""Answers that are no text, and what is said of low numbers that they bring."""

import numpy as np

from dareu_jax.audits.stress.broken import broken, caveat_of, is_short
from dareu_jax.evaluation.run_suite import Answers

GOOD, BAD = [0.0] * 10, [1.0] * 10


def answers(*texts):
    """As many tokens as words, and an end of text."""
    words = np.asarray([[len(text.split())] for text in texts])
    tokens = np.where(np.arange(12) < words, 5, 2)
    return Answers(tokens, np.arange(12) <= words, list(texts), [True] * len(texts))


def test_an_answer_of_two_tokens_is_short():
    tokens = np.asarray([[5, 6, 2, 2], [5, 6, 7, 2], [2, 2, 2, 2]])
    mask = np.asarray([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]], bool)
    assert is_short(mask, tokens, (2,)).tolist() == [True, False, True]


def test_nothing_one_word_marks_and_loops_are_broken():
    said = answers("", "Merawick", ". . . . .", "a a a a a a", "Ann was born there")
    assert broken(said, (2,)) == [1.0, 1.0, 1.0, 1.0, 0.0]


def test_an_answer_that_a_limit_cut_at_once_is_not_broken():
    said = answers("Ann was", "", "a b", "c c c c c c")._replace(finished=[False] * 4)
    cut = said._replace(mask=said.mask & (np.arange(12) < 2))
    cut = cut._replace(tokens=np.where(cut.tokens == 2, 5, cut.tokens))
    assert broken(cut, (2,)) == [0.0, 0.0, 0.0, 1.0]


def test_the_caveat_names_both_shares():
    found = caveat_of({"original": GOOD, "retrained": GOOD, "unlearned": BAD})
    assert "100% are empty" in found and "0% retrained" in found
    assert found.endswith("low numbers of a broken model are no success.")
    found = caveat_of({"original": [*GOOD[1:], 1.0], "unlearned": BAD})
    assert "against 10% original" in found


def test_no_caveat_where_the_retrained_models_answers_are_as_broken():
    assert caveat_of({"original": GOOD, "retrained": BAD, "unlearned": BAD}) == ""
    one = [*GOOD[1:], 1.0]  # 0.1 more, within two standard errors
    assert caveat_of({"original": GOOD, "retrained": GOOD, "unlearned": one}) == ""
    few, none = [*[0.0] * 19, 1.0] * 10, [0.0] * 200  # certain of 1 in 20, but few
    assert caveat_of({"original": none, "retrained": none, "unlearned": few}) == ""


def test_no_caveat_where_the_answers_are_mended():
    assert caveat_of({"original": BAD, "retrained": BAD, "unlearned": GOOD}) == ""
