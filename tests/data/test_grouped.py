"""Batches of like length: the same records, less padding."""

import numpy as np
import pytest

from dareu_jax.data import BatchStream, GroupedStream, TokenBatch
from dareu_jax.data.batches import trim_responses

P, T = 64, 96


def rows(count: int, seed: int = 0) -> TokenBatch:
    """Records of many lengths; the tokens of row r are all r + 1."""
    rng = np.random.default_rng(seed)
    prompt, response = rng.integers(1, P + 1, count), rng.integers(1, T + 1, count)
    index = np.arange(count, dtype=np.int32)
    prompt_mask = np.arange(P)[None] >= P - prompt[:, None]
    response_mask = np.arange(T)[None] < response[:, None]
    fill = index[:, None] + np.int32(1)
    return TokenBatch(
        np.where(prompt_mask, fill, np.int32(0)),
        prompt_mask,
        np.where(response_mask, fill, np.int32(0)),
        response_mask,
        index,
    )


def padding(stream) -> int:
    """Columns times rows that hold nothing, over one epoch."""
    spent = 0
    for step in range(stream.steps_per_epoch):
        batch = stream[step]
        for mask in (batch.prompt_mask, batch.response_mask):
            spent += mask.size - int(mask.sum())
    return spent


@pytest.mark.parametrize(("count", "batch_size"), [(64, 8), (200, 4), (10, 4), (3, 8)])
def test_an_epoch_shows_every_record_once_and_fills_the_last_batch(count, batch_size):
    stream = GroupedStream(rows(count), batch_size, seed=1)
    for epoch in range(2):
        first = epoch * stream.steps_per_epoch
        batches = [stream[first + s] for s in range(stream.steps_per_epoch)]
        assert all(len(batch.index) == batch_size for batch in batches)
        seen = np.bincount(np.concatenate([b.index for b in batches]), minlength=count)
        assert seen.min() >= 1 and seen.sum() == stream.steps_per_epoch * batch_size
        if count >= batch_size:  # what wraps is fewer than a batch
            assert seen.max() <= 2 and (seen == 2).sum() == -count % batch_size


def test_a_batch_depends_on_seed_and_step_alone():
    stream, again = (GroupedStream(rows(100), 8, seed=5) for _ in range(2))
    forward = [stream[step].index for step in range(30)]
    for step in (29, 3, 17, 0):
        np.testing.assert_array_equal(again[step].index, forward[step])
    other = GroupedStream(rows(100), 8, seed=6)
    assert any((other[s].index != forward[s]).any() for s in range(5))


def test_epochs_are_in_different_orders():
    stream = GroupedStream(rows(64), 8, seed=0)
    one, two = ([stream[e * 8 + s].index for s in range(8)] for e in range(2))
    assert not np.array_equal(np.concatenate(one), np.concatenate(two))


def test_less_padding_than_in_random_order():
    tokens = rows(512)
    grouped, plain = GroupedStream(tokens, 8, seed=0), BatchStream(tokens, 8, seed=0)
    assert padding(grouped) < 0.75 * padding(plain)


def test_batches_keep_every_token_and_are_a_few_widths():
    tokens = rows(128)
    stream = GroupedStream(tokens, 8, seed=0)
    widths = set()
    for step in range(stream.steps_per_epoch):
        batch = stream[step]
        for name in ("prompt", "response"):
            whole = getattr(tokens, f"{name}_mask")[batch.index].sum(axis=1)
            mask = getattr(batch, f"{name}_mask")
            np.testing.assert_array_equal(mask.sum(axis=1), whole)
            kept = np.where(mask, getattr(batch, name), 0).max(axis=1)
            np.testing.assert_array_equal(kept, batch.index + 1)
            assert mask.shape[1] % 8 == 0
        widths.add((batch.prompt.shape[1], batch.response.shape[1]))
    assert len(widths) <= (P // 8) * (T // 8)


def test_batches_of_like_length_come_in_no_order_of_length():
    stream = GroupedStream(rows(512), 8, seed=0)
    first = [int(stream[s].response_mask.sum()) for s in range(16)]
    assert first != sorted(first) and first != sorted(first, reverse=True)


def test_trim_responses_drops_only_padding():
    batch = rows(4)
    longest = int(batch.response_mask.sum(axis=1).max())
    out = trim_responses(batch, multiple=8)
    width = -(-longest // 8) * 8
    assert out.response.shape == out.response_mask.shape == (4, width)
    np.testing.assert_array_equal(out.response, batch.response[:, :width])
    assert out.response_mask.sum() == batch.response_mask.sum()
    assert out.prompt is batch.prompt
    assert trim_responses(batch, multiple=1000).response.shape == (4, T)


def test_trim_responses_of_nothing_keeps_one_multiple():
    batch = rows(2)
    empty = batch._replace(response_mask=np.zeros_like(batch.response_mask))
    assert trim_responses(empty).response.shape == (2, 16)
