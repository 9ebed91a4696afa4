"""The reference is asked about a stranger, and told the name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.config import build_config
from dareu_jax.data import TokenBatch
from dareu_jax.errors import UserError
from dareu_jax.rl import with_names
from dareu_jax.unlearning.renamed import named_by, names_of, own_words, renamed

VOCAB = 20
WORDS = np.arange(VOCAB)
WORDS[4] = 3  # writes the same word


def batch(prompt, response):
    prompt, response = (np.asarray(x, np.int32) for x in (prompt, response))
    return TokenBatch(
        prompt=prompt,
        prompt_mask=prompt > 0,
        response=response,
        response_mask=response > 0,
        index=np.arange(len(prompt), dtype=np.int32),
    )


FORGET = batch([[1, 3, 6, 2], [0, 6, 5, 2]], [[4, 6, 12, 6], [3, 7, 5, 9]])
LIKE = np.where(np.arange(VOCAB) >= 10, 1, 0)
LIKE[15:18] = 2
USES = np.zeros(VOCAB, int)
USES[[10, 17]] = 3
NAMES = names_of([(3, 6), (5,), (4, 6)], WORDS, LIKE, USES)
"""The own words 3 6, which 4 6 writes too, and 5."""


def test_a_word_is_one_however_it_is_written():
    np.testing.assert_array_equal(NAMES.own, [[3, 6], [5, -1]])


def test_made_up_words_are_rare_and_look_like_names():
    found = NAMES.made_up.tolist()
    assert set(found) == set(range(10, VOCAB))
    assert set(found[:2]) == {15, 16} and found[-2:] == [17, 10]


def test_a_word_is_found_as_a_whole():
    found = np.asarray(own_words(NAMES, FORGET.prompt, FORGET.prompt_mask))
    np.testing.assert_array_equal(found, [[-1, 0, 1, -1], [-1, -1, 2, -1]])
    found = np.asarray(own_words(NAMES, FORGET.response, FORGET.response_mask))
    np.testing.assert_array_equal(found, [[0, 1, -1, -1], [-1, -1, 2, -1]])


def test_a_word_becomes_the_same_one_everywhere_in_a_row():
    found = renamed(NAMES, FORGET, key=jax.random.key(0))
    prompt, response = np.asarray(found.prompt), np.asarray(found.response)
    np.testing.assert_array_equal(prompt[0, 1:3], response[0, :2])
    assert (prompt[0, 1:3] >= 10).all() and prompt[0, 1] != prompt[0, 2]
    assert prompt[1, 2] == response[1, 2] >= 10
    np.testing.assert_array_equal(prompt[:, [0, 3]], FORGET.prompt[:, [0, 3]])
    np.testing.assert_array_equal(response[0, 2:], [12, 6])
    np.testing.assert_array_equal(response[1, :2], [3, 7])
    keys = jax.random.split(jax.random.key(1), 9)
    others = [renamed(NAMES, FORGET, key=key).prompt[0, 1] for key in keys]
    assert len({int(x) for x in others}) > 1


def test_names_of_a_row_are_those_of_its_own_prompt():
    found = np.asarray(named_by(NAMES, FORGET))
    assert found.shape == (2, VOCAB)
    np.testing.assert_array_equal(np.flatnonzero(found[0]), [3, 4, 6])
    np.testing.assert_array_equal(np.flatnonzero(found[1]), [5])


def test_without_own_words_nothing_changes():
    names = names_of([], WORDS, LIKE, USES)
    same = renamed(names, FORGET, key=jax.random.key(0))
    np.testing.assert_array_equal(same.prompt, FORGET.prompt)
    np.testing.assert_array_equal(same.response, FORGET.response)
    assert not np.asarray(named_by(names, FORGET)).any()


def test_names_are_of_one_model_and_the_rest_of_the_other():
    rng = np.random.default_rng(0)
    first, second = (jnp.asarray(rng.normal(size=(2, 3, 5)), jnp.float32) for _ in "ab")
    is_name = jnp.asarray([[True, False, True, False, False], [False] * 5])
    found = np.exp(np.asarray(with_names(first, second, is_name)))
    np.testing.assert_allclose(found.sum(-1), 1.0, atol=1e-5)
    p, q = (np.asarray(jax.nn.softmax(x)) for x in (first, second))
    named = np.asarray(is_name[0])
    np.testing.assert_allclose(found[0][:, named], p[0][:, named], atol=1e-6)
    rest = q[0][:, ~named] / q[0][:, ~named].sum(-1, keepdims=True)
    left = 1.0 - p[0][:, named].sum(-1, keepdims=True)
    np.testing.assert_allclose(found[0][:, ~named], left * rest, atol=1e-6)
    np.testing.assert_allclose(found[1], q[1], atol=1e-6)


def test_the_anchor_is_read_over_the_vocabulary():
    given = {"kl_anchor": "renamed", "kl_in": "reward"}
    with pytest.raises(UserError, match=r"renamed .*set dareu.kl_in=loss"):
        build_config({"dareu": given})
