"""Widths of batches: few, nested, the best there are; batches that use them."""

import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.data import BatchStream, Record, TokenBatch, load_tokenizer
from dareu_jax.data.batches import encode, fitted_widths, over_records
from dareu_jax.data.sources.base import json_rows
from dareu_jax.data.widths import fewest_slots, fit_widths, levels, within
from dareu_jax.data.wording import Wording

P, T = 40, 64


def tokens_of(lengths: np.ndarray, limits: tuple[int, int]) -> TokenBatch:
    """Returns records of the given lengths, whose tokens are all their row + 1."""
    p, t = limits
    left = np.arange(p) >= p - lengths[:, :1]
    right = np.arange(t) < lengths[:, 1:]
    index = np.arange(len(lengths), dtype=np.int32)
    ids = index[:, None] + 1
    return TokenBatch(
        np.where(left, ids, 0), left, np.where(right, ids, 0), right, index
    )


def rows(count: int) -> TokenBatch:
    """Returns records of random lengths."""
    rng = np.random.default_rng(7)
    lengths = np.stack([rng.integers(3, P, count), rng.integers(1, T, count)], axis=1)
    return tokens_of(lengths, (P, T))


def used(stream: BatchStream, epochs: int = 1) -> float:
    """Returns the share of the slots of an epoch that hold a token."""
    steps = range(epochs * stream.steps_per_epoch)
    batches = [stream[step] for step in steps]
    held = sum(int(b.prompt_mask.sum() + b.response_mask.sum()) for b in batches)
    return held / sum(b.prompt.size + b.response.size for b in batches)


def shapes(stream: BatchStream) -> set[tuple[int, int]]:
    """Returns the widths of all batches of an epoch."""
    batches = [stream[step] for step in range(stream.steps_per_epoch)]
    return {(b.prompt.shape[1], b.response.shape[1]) for b in batches}


def test_no_nested_widths_leave_less_empty():
    rng = np.random.default_rng(0)
    lengths = np.stack([rng.integers(1, 25, 60), rng.integers(1, 33, 60)], axis=1)
    grid = list(itertools.product((8, 16, 24), (8, 16, 24, 32)))
    cells = np.asarray(grid)
    held = (lengths[:, None] <= cells).all(axis=2).sum(axis=0)
    slots, chains = fewest_slots(cells, held, 3)

    def cost(chain):
        return np.asarray(chain).sum(axis=1)[levels(lengths, chain)].sum()

    for count, found in enumerate(chains, start=1):
        others = itertools.combinations(grid[:-1], count - 1)
        nested = [
            (*x, grid[-1])
            for x in others
            if sorted(t for _, t in x) == [t for _, t in x]
        ]
        assert cost(found) == slots[count - 1] == min(map(cost, nested))
    assert slots[0] > slots[1] > slots[2]


def test_a_width_more_has_to_save_what_its_program_costs():
    alike = np.full((200, 2), (13, 19))
    assert fit_widths(alike, (24, 32), passes=1e6) == ((16, 24),)
    mixed = np.concatenate([alike, np.full((100, 2), (24, 32))])
    assert fit_widths(mixed, (24, 32)) == ((24, 32),)  # saves 3,200 slots a pass
    assert fit_widths(mixed, (24, 32), passes=12) == ((16, 24), (24, 32))
    assert fit_widths(mixed, (24, 32), batch_size=300, passes=12) == ((24, 32),)


def test_widths_fit_texts_of_thousands_of_tokens_and_odd_limits():
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 2048, (500, 2))
    begun = time.process_time()
    found = fit_widths(lengths, (2047, 2047), passes=100)
    assert time.process_time() - begun < 1.0
    assert len(found) == 5 and found[-1] == (2047, 2047)
    assert all((np.diff(found, axis=0) >= 0).ravel())


def test_stages_choose_among_the_same_widths():
    lengths = np.asarray([[5, 9], [12, 17], [20, 30], [21, 50]])
    among = ((8, 16), (16, 24), (24, 56))
    chosen = fit_widths(lengths, (40, 64), among=among, worth=1)
    assert chosen == among
    longer = fit_widths(lengths + np.asarray([0, 10]), (40, 64), among=among, worth=1)
    assert set(longer) <= {*among, (40, 64)} and longer[-1] == (40, 64)
    assert within(among, (16, 20)) == ((8, 16), (16, 20))


def test_batches_keep_every_token_in_few_shapes():
    tokens = rows(130)
    stream = BatchStream(tokens, 8, seed=0, widths=fitted_widths(tokens, 8, passes=99))
    assert 1 < len(shapes(stream)) <= len(stream.widths) <= 5
    seen = []
    for step in range(stream.steps_per_epoch):
        batch = stream[step]
        np.testing.assert_array_equal(batch.index, stream.rows(step))
        for name in ("prompt", "response"):
            whole = getattr(tokens, f"{name}_mask")[batch.index].sum(axis=1)
            mask = getattr(batch, f"{name}_mask")
            np.testing.assert_array_equal(mask.sum(axis=1), whole)
            kept = np.where(mask, getattr(batch, name), 0).max(axis=1)
            np.testing.assert_array_equal(kept, batch.index + 1)
        seen.extend(batch.index)
    assert set(seen) == set(range(130)) and len(seen) == 136


def test_batches_of_like_length_come_in_no_order_of_length():
    tokens = rows(512)
    stream = BatchStream(tokens, 8, seed=0, widths=fitted_widths(tokens, 8, passes=9))
    first = [stream[s].response.shape[1] for s in range(64)]
    assert first != sorted(first) and first != sorted(first, reverse=True)
    again = [stream[64 + s].response.shape[1] for s in range(64)]
    assert first != again
    together = [set(stream.rows(s)) for s in range(64)]
    assert set(stream.rows(64)) not in together  # nor with the same neighbours


def test_a_run_that_goes_on_sees_the_batches_of_one_that_never_stopped():
    tokens = rows(50)
    widths = fitted_widths(tokens, 8, worth=1)
    one, other = (BatchStream(tokens, 8, seed=7, widths=widths) for _ in range(2))
    batches = [one[step] for step in range(3 * one.steps_per_epoch)]
    for step in (20, 3, 17, 0):
        jax.tree.map(np.testing.assert_array_equal, other[step], batches[step])


def test_results_come_in_the_order_of_the_records():
    tokens = rows(50)
    widths = fitted_widths(tokens, 8, worth=1)
    seen = set()

    def score(batch):
        seen.add((batch.prompt.shape[1], batch.response.shape[1]))
        return batch.index * 10, batch.response.max(axis=1)

    ten, own = over_records(tokens, 8, lambda x: x, score, widths)
    np.testing.assert_array_equal(ten, np.arange(50) * 10)
    np.testing.assert_array_equal(own, np.arange(50) + 1)
    assert len(seen) == len(widths) == 5


@pytest.fixture(scope="module")
def tofu(data_dir, tmp_path_factory) -> TokenBatch:
    """TOFU's 4,000 questions, in tokens that are trained on them."""
    found = [row for _, row in json_rows(data_dir / "tofu" / "full.json")]
    records = [Record("", "", x["question"], x["answer"]) for x in found]
    texts = (f"{x.prompt} {x.response}" for x in records)
    folder = tmp_path_factory.mktemp("tokenizers") / "tofu"
    tokenizer = load_tokenizer(None, texts, 4096, folder)
    sides = encode(records, tokenizer, Wording())
    lengths = np.asarray([list(map(len, side)) for side in sides]).T
    return tokens_of(lengths, tuple(-(-lengths.max(axis=0) // 8) * 8))


@pytest.mark.parametrize("size", [8, 16])
def test_two_thirds_of_the_slots_of_tofu_hold_a_token(tofu, size):
    plain = BatchStream(tofu, size, seed=0)
    widths = fitted_widths(tofu, size, passes=5)
    stream = BatchStream(tofu, size, seed=0, widths=widths)
    assert used(plain) < 0.5 and used(stream, epochs=2) >= 0.65
    assert len(shapes(stream)) <= 5


def test_a_step_is_compiled_once_for_each_width(tofu):
    widths = fitted_widths(tofu, 8, passes=5)
    stream, traced = BatchStream(tofu, 8, seed=0, widths=widths), []

    @jax.jit
    def step(batch):
        traced.append(batch.prompt.shape)
        return jnp.sum(batch.response_mask)

    for at in range(stream.steps_per_epoch):
        step(stream[at])
    assert len(traced) == step._cache_size() == len(widths) <= 5


def test_the_rows_of_a_batch_cost_under_a_tenth_of_a_millisecond(tofu):
    widths = fitted_widths(tofu, 8, passes=5)
    costs = []
    for seed in range(3):
        stream = BatchStream(tofu, 8, seed=seed, widths=widths)
        begun = time.process_time()
        for step in range(2 * stream.steps_per_epoch):
            stream[step]
        costs.append((time.process_time() - begun) / step)
    assert min(costs) < 1e-4
