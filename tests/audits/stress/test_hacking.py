"""Signs of answers that say nothing, and what is held out from whom."""

import numpy as np
import pytest

from dareu_jax.audits.stress.hacking import switched, unique_share
from dareu_jax.audits.stress.held_out import beginning, fresh_size, judges_of
from dareu_jax.config import build_config
from dareu_jax.data import TokenBatch


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


@pytest.mark.parametrize(
    ("share", "kept"), [(0.125, [1, 1, 1]), (0.5, [1, 2, 4]), (0.75, [1, 3, 6])]
)
def test_the_beginning_of_an_answer_is_a_share_of_its_tokens(share, kept):
    mask = np.arange(8) < np.asarray([[1], [5], [8]])
    none = np.zeros((3, 8), np.int32)
    tokens = TokenBatch(none, mask, none, mask, np.arange(3, dtype=np.int32))
    found = beginning(tokens, share).response_mask
    assert found.sum(axis=1).tolist() == kept
    assert all(row[:n].all() for row, n in zip(found, kept, strict=True))
    assert (beginning(tokens, 1.0).response_mask == mask).all()
