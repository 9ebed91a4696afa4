"""The reference is asked about a stranger, and told the name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.config import build_config
from dareu_jax.data import TokenBatch
from dareu_jax.errors import UserError
from dareu_jax.rl import with_names
from dareu_jax.unlearning.renamed import named_by, names_of, renamed

VOCAB = 20
WORDS = np.arange(VOCAB)
WORDS[4] = 3  # writes the same word
USABLE = np.arange(VOCAB) >= 10


def batch(prompt, response):
    prompt, response = (np.asarray(x, np.int32) for x in (prompt, response))
    return TokenBatch(
        prompt=prompt,
        prompt_mask=prompt > 0,
        response=response,
        response_mask=response > 0,
        index=np.arange(len(prompt), dtype=np.int32),
    )


FORGET = batch([[1, 3, 2], [0, 5, 2]], [[4, 6, 12], [3, 7, 5]])
RETAIN = batch([[1, 8, 2]], [[9, 10, 0]])
NAMES = names_of(FORGET, RETAIN, WORDS, USABLE)


def test_own_words_are_those_that_no_retain_prompt_has():
    own = np.flatnonzero(NAMES.rank >= 0)
    np.testing.assert_array_equal(own, [3, 4, 5])
    assert NAMES.rank[3] == NAMES.rank[4] != NAMES.rank[5]


def test_made_up_words_are_rare_and_nobodys():
    assert set(NAMES.made_up.tolist()) == set(range(10, VOCAB))
    assert set(NAMES.made_up[-2:].tolist()) == {10, 12}  # used once, the others never


def test_a_word_becomes_the_same_one_everywhere_in_a_row():
    found = renamed(NAMES, FORGET, key=jax.random.key(0))
    prompt, response = np.asarray(found.prompt), np.asarray(found.response)
    assert prompt[0, 1] == response[0, 0] and prompt[0, 1] >= 10
    assert prompt[1, 1] == response[1, 2] != response[1, 0]
    np.testing.assert_array_equal(prompt[:, 2], [2, 2])
    np.testing.assert_array_equal(response[:, 1], [6, 7])
    others = [
        renamed(NAMES, FORGET, key=jax.random.key(k)).prompt[0, 1] for k in range(9)
    ]
    assert len({int(x) for x in others}) > 1


def test_names_of_a_row_are_those_of_its_own_prompt():
    found = np.asarray(named_by(NAMES, FORGET))
    assert found.shape == (2, VOCAB)
    np.testing.assert_array_equal(np.flatnonzero(found[0]), [3, 4])
    np.testing.assert_array_equal(np.flatnonzero(found[1]), [5])


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
