"""Signs of answers that say nothing, and what is held out from whom."""

import numpy as np

from dareu_jax.config import build_config
from dareu_jax.stress.hacking import is_short, switched, unique_share
from dareu_jax.stress.held_out import fresh_size, judges_of


def test_an_answer_of_two_tokens_is_short():
    tokens = np.asarray([[5, 6, 2, 2], [5, 6, 7, 2], [2, 2, 2, 2]])
    mask = np.asarray([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]], bool)
    assert is_short(mask, tokens, (2,)).tolist() == [True, False, True]


def test_a_switch_is_to_another_forget_owner():
    own, best = np.asarray([0, 0, 0, 3]), np.asarray([0, 3, 1, 0])
    assert switched(best, own, (0, 3)).tolist() == [False, True, False, True]


def test_unique_share():
    assert unique_share(["a", "a", "b", "a"]) == 0.5


def test_held_out_judges_are_neither_reward_nor_judge():
    plain = build_config({})
    assert list(judges_of(plain).values()) == ["classifier", "grad_dot", "ngram"]
    assert fresh_size(plain) not in ("decoder-300k", "decoder-400k")
    taken = build_config({"reward": {"kernel": "grad_dot"}})
    assert "grad_dot" not in judges_of(taken)
    taken = build_config({"reward": {"kernel": "ngram"}})
    assert judges_of(taken)["bm25"] == "bm25"
    small = {"classifier": {"model": {"preset": "decoder-100k"}}}
    assert fresh_size(build_config(small)) == "decoder-300k"
