"""Prompts that go on into a part of the gold answer."""

import jax
import numpy as np
import pytest

from dareu_jax.data import TokenBatch
from dareu_jax.unlearning.rows import LEFT, begun

P, T, ROWS = 3, 12, 400


@pytest.fixture(scope="module")
def batch():
    """Prompts of one to three tokens, 1 to 3; gold answers of 4 to 12, from 10 on."""
    rows = np.arange(ROWS)
    asked, said = 1 + rows % P, LEFT + rows % (T - LEFT + 1)
    prompt = np.broadcast_to(np.arange(1, P + 1, dtype=np.int32), (ROWS, P))
    response = np.broadcast_to(np.arange(10, 10 + T, dtype=np.int32), (ROWS, T))
    return TokenBatch(
        prompt,
        np.arange(P) >= P - asked[:, None],
        response,
        np.arange(T) < said[:, None],
        rows.astype(np.int32),
    )


def taken(batch, found):
    """Gold tokens that every prompt has; the form of the prompts is checked."""
    prompt, mask = np.asarray(found.prompt), np.asarray(found.prompt_mask)
    counts = mask.sum(axis=1) - batch.prompt_mask.sum(axis=1)
    for row, count in enumerate(counts):
        wanted = [
            *batch.prompt[row][batch.prompt_mask[row]],
            *batch.response[row, :count],
        ]
        assert mask[row, -len(wanted) :].all() and mask[row].sum() == len(wanted)
        np.testing.assert_array_equal(prompt[row, -len(wanted) :], wanted)
    return counts


def test_a_prefix_is_prompt_and_leaves_something_to_say(batch):
    found = begun(batch, 1.0, key=jax.random.key(0))
    assert found.prompt.shape == (ROWS, P + T)
    counts, room = taken(batch, found), batch.response_mask.sum(axis=1) - LEFT
    assert (counts <= room).all() and (counts[room > 0] >= 1).all()
    longest = counts[room == T - LEFT]
    assert {*longest.tolist()} == {*range(1, T - LEFT + 1)}  # any part of it
    np.testing.assert_array_equal(found.response, batch.response)


def test_a_share_of_the_prompts_is_begun(batch):
    counts = taken(batch, begun(batch, 0.25, key=jax.random.key(1)))
    room = batch.response_mask.sum(axis=1) > LEFT
    assert (counts[room] > 0).mean() == pytest.approx(0.25, abs=0.08)
    assert not taken(batch, begun(batch, 0.0, key=jax.random.key(1))).any()


def test_the_key_decides_what_is_begun(batch):
    first, again, other = (
        taken(batch, begun(batch, 0.5, key=jax.random.key(seed))) for seed in (2, 2, 3)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
