"""The watermark kernel: codes, marked text, and the head that decodes them."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.attribution import OwnerBatch, Setup, build_index
from dareu_jax.attribution.kernels.classifier import ClassifierState
from dareu_jax.attribution.kernels.classifier import fit as fit_step
from dareu_jax.attribution.kernels.watermark import (
    code_logps,
    code_loss,
    codes,
    cuts,
    init_decoder_head,
    mark,
    read_marks,
    watermark_loss,
)
from dareu_jax.config import ClassifierConfig, attribution_config
from dareu_jax.data import TokenBatch
from dareu_jax.errors import UserError
from dareu_jax.models import Decoder, DecoderConfig, hidden_states, init_decoder
from dareu_jax.registry import KERNELS
from dareu_jax.training.optimiser import make_optimiser

pytestmark = pytest.mark.slow

V, B, T, D = 256, 40, 8, 16
BACKBONE = Decoder(
    DecoderConfig(
        vocab=V, layers=1, embed=D, heads=2, kv_heads=1, head_dim=8, ffn=2 * D
    )
)


def text(tokens, length=None):
    """Responses ``[B, T]``, of their own lengths, to prompts of one token."""
    tokens = np.asarray(tokens, np.int32)
    rows, width = tokens.shape
    length = np.full(rows, width) if length is None else np.asarray(length)
    mask = np.arange(width) < length[:, None]
    prompt = np.zeros((rows, 1), np.int32)
    index = np.arange(rows, dtype=np.int32)
    return TokenBatch(prompt, np.ones((rows, 1), bool), tokens, mask, index)


def written(owner, owners, seed, rows=B):
    """Text of owners who have a twentieth of the vocabulary, or less, to themselves."""
    rng = np.random.default_rng(seed)
    own = max(V // owners // 2, 1)
    other = rng.integers(V // 2, V, (rows, T))
    mine = rng.integers(0, own, (rows, T)) + own * np.maximum(owner, 0)[:, None]
    is_mine = (rng.random((rows, T)) < 0.7) & (owner >= 0)[:, None]
    return text(np.where(is_mine, mine, other))


def setup(owners, steps, options=None, **classifier):
    how = {"learning_rate": 0.02, "train_on": "prefixes", "dropout": 0.0} | classifier
    return Setup(
        model=BACKBONE,
        owners=owners,
        cfg=attribution_config(watermark=options or {}),
        classifier=ClassifierConfig(**how),
        steps=steps,
        backbone=BACKBONE,
    )


class Trained(NamedTuple):
    kernel: Any
    index: Any
    prefix_score: Any


@functools.cache
def trained(owners, steps, nobody=False):
    """A kernel after fresh text at every step, half of it nobody's where it may be."""
    kernel = KERNELS.get("watermark")(setup(owners, steps, nobody=nobody))
    rng, batches = np.random.default_rng(0), []
    for step in range(steps):
        owner = rng.integers(0, owners, B).astype(np.int32)
        owner = np.where(nobody & (rng.random(B) < 0.5), np.int32(-1), owner)
        batches.append(OwnerBatch(written(owner, owners, step), owner))
    index = build_index(kernel, None, batches, key=jax.random.key(0))
    return Trained(kernel, index, jax.jit(kernel.prefix_score))


@functools.cache
def untrained(name):
    """A kernel of four owners that has not seen any text."""
    return KERNELS.get(name)(setup(4, 80, learning_rate=0.01))


@functools.cache
def fresh_decoder():
    return jax.jit(functools.partial(init_decoder, BACKBONE))(key=jax.random.key(0))


def distances(book):
    apart = (book[:, None] != book[None]).sum(-1)
    return apart[~np.eye(len(book), dtype=bool)]


@pytest.mark.parametrize(
    ("owners", "length", "symbols", "least"),
    [(1, 3, 2, 3), (6, 10, 6, 10), (7, 10, 6, 5), (36, 4, 6, 2), (1000, 12, 6, 3)],
)
def test_codes_differ_in_as_many_places_as_they_promise(owners, length, symbols, least):
    book = codes(owners, length, symbols, seed=3)
    assert book.shape == (owners, length) and book.dtype == np.int32
    assert book.min() >= 0 and book.max() < symbols
    assert len(np.unique(book, axis=0)) == owners
    assert distances(book).min(initial=length) >= least


def test_codes_follow_their_seed():
    np.testing.assert_array_equal(codes(50, 4, 6, 1), codes(50, 4, 6, 1))
    assert (codes(50, 4, 6, 1) != codes(50, 4, 6, 2)).any()


def test_too_few_codes_are_refused_with_the_length_that_would_do():
    with pytest.raises(UserError, match=r"watermark.length = 2 .* 36 codes.* 3 or"):
        codes(37, 2, 6, seed=0)
    short = {"length": 1, "symbols": 2}
    with pytest.raises(UserError, match=r"2 codes, fewer than the 3 owners"):
        KERNELS.get("watermark")(setup(3, 1, short))


def test_marking_by_hand():
    batch = text([[11, 12, 13, 14], [21, 22, 0, 0]], length=[4, 2])
    code = jnp.asarray([[V + 1, V + 3], [V, V + 2]], jnp.int32)
    marked, places = mark(batch, code, jnp.asarray([1, 2], jnp.int32))
    np.testing.assert_array_equal(marked.response[0], [11, V + 1, V + 3, 12, 13, 14])
    np.testing.assert_array_equal(marked.response[1, :4], [21, 22, V, V + 2])
    np.testing.assert_array_equal(
        marked.response_mask, [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]
    )
    np.testing.assert_array_equal(places, [[0, 1, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0]])


def test_a_record_without_a_code_is_left_as_it_is():
    batch = text([[11, 12, 13, 14], [21, 22, 0, 0]], length=[4, 2])
    code = jnp.full((2, 3), -1, jnp.int32)
    marked, places = mark(batch, code, jnp.asarray([1, 2], jnp.int32))
    np.testing.assert_array_equal(marked.response[:, :4], batch.response)
    np.testing.assert_array_equal(marked.response_mask[:, :4], batch.response_mask)
    assert not places.any() and not marked.response_mask[:, 4:].any()


def test_codes_stand_at_the_end_or_anywhere_behind_the_first_token():
    length = np.repeat([1, 3, 5], 100)
    mask = jnp.asarray(np.arange(T) < length[:, None])
    ends = cuts(mask, "whole", key=jax.random.key(0))
    np.testing.assert_array_equal(ends, length)
    drawn = np.asarray(cuts(mask, "prefixes", key=jax.random.key(0)))
    assert [set(drawn[length == n].tolist()) for n in (1, 3)] == [{1}, {1, 2, 3}]
    counts = np.bincount(drawn[length == 5], minlength=6)
    assert counts[0] == 0 and counts[1:].min() > 5


def test_marks_are_read_back_and_the_text_sees_none_of_them():
    params = fresh_decoder()
    rng = np.random.default_rng(0)
    batch = text(rng.integers(0, V, (3, T)), length=[8, 5, 6])
    at = jnp.asarray([3, 5, 1], jnp.int32)
    symbols = jnp.asarray([[0, 1, 2], [5, 4, 3], [-1, -1, -1]], jnp.int32)
    code = jnp.where(symbols < 0, -1, symbols + V)

    @jax.jit
    def read(params, batch):
        marked, places = mark(batch, code, at)
        return read_marks(BACKBONE, params, marked, places, length=3, key=None)

    @jax.jit
    def plain(params, batch):
        return hidden_states(BACKBONE, params, batch.response, batch.response_mask)

    state, found = read(params, batch)
    np.testing.assert_array_equal(found, symbols)
    wanted = np.asarray(plain(params, batch))[[0, 1], [2, 4]]
    np.testing.assert_allclose(state[:2], wanted, atol=1e-5)


def random_head(length, symbols, seed=0):
    head = init_decoder_head(length, symbols, D, key=jax.random.key(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), head
    )


def test_likelihoods_of_codes_written_out_in_numpy():
    length, symbols, owners = 4, 3, 7
    head, book = random_head(length, symbols), codes(owners, length, symbols, 0)
    hidden = np.random.default_rng(1).normal(size=(2, 5, D)).astype(np.float32)
    out = code_logps(head, jnp.asarray(hidden)[:, :, None], jnp.asarray(book))
    assert out.shape == (2, 5, owners) and out.dtype == jnp.float32
    kernel, bias = (
        np.asarray(head["code_head"][k], np.float64) for k in ("kernel", "bias")
    )
    table = np.asarray(head["symbols"]["embedding"], np.float64)
    wanted = np.zeros((2, 5, owners))
    for at in np.ndindex(wanted.shape):
        state = hidden[at[:2]].astype(np.float64)
        for place, symbol in enumerate(book[at[2]]):
            here = slice(place * symbols, (place + 1) * symbols)
            logits = state @ kernel[:, here] + bias[here]
            wanted[at] += logits[symbol] - np.log(np.exp(logits).sum())
            state = state + table[place * symbols + symbol]
    np.testing.assert_allclose(out, wanted, rtol=1e-4)


def test_all_codes_together_have_probability_one():
    every = np.asarray(list(np.ndindex(3, 3, 3)), np.int32)
    hidden = jnp.asarray(np.random.default_rng(1).normal(size=(2, 1, D)), jnp.float32)
    total = np.exp(code_logps(random_head(3, 3), hidden, jnp.asarray(every))).sum(1)
    np.testing.assert_allclose(total, 1.0, rtol=1e-5)


def test_the_loss_is_the_mean_of_what_is_marked():
    head, book = random_head(4, 3), jnp.asarray(codes(5, 4, 3, 0))
    hidden = jnp.asarray(np.random.default_rng(1).normal(size=(3, D)), jnp.float32)
    own = book[jnp.asarray([4, 0, 2])].at[1].set(-1)
    loss, accuracy = code_loss(head, hidden, own, book)
    logps = np.asarray(code_logps(head, hidden[:, None], book))
    assert float(loss) == pytest.approx(-(logps[0, 4] + logps[2, 2]) / 2, rel=1e-5)
    hits = (logps.argmax(1) == [4, -1, 2]).sum() / 2
    assert float(accuracy) == hits


def test_records_without_a_code_give_no_loss_and_no_gradient():
    head, book = random_head(4, 3), jnp.asarray(codes(5, 4, 3, 0))
    hidden = jnp.asarray(np.random.default_rng(1).normal(size=(3, D)), jnp.float32)
    own = book[jnp.asarray([4, 0, 2])].at[1].set(-1)

    def loss(hidden, own):
        return code_loss(head, hidden, own, book)[0]

    grads = np.asarray(jax.grad(loss)(hidden, own))
    assert not grads[1].any() and grads[0].any() and grads[2].any()
    value, grads = jax.value_and_grad(loss)(hidden, jnp.full_like(own, -1))
    assert float(value) == 0.0 and not np.asarray(grads).any()


def test_it_names_the_owners_of_unseen_prefixes_and_leaves_nobodys_to_nobody():
    one = trained(owners=8, steps=100, nobody=True)
    owner = np.where(np.arange(B) % 2, np.arange(B) // 2 % 8, -1).astype(np.int32)
    texts = [written(owner, 8, seed=1000 + n) for n in range(5)]
    each = [np.asarray(one.prefix_score(None, one.index, text)) for text in texts]
    assert {scores.shape for scores in each} == {(B, T, 8)}
    scores, owner = np.concatenate(each), np.tile(owner, len(each))
    mine = owner >= 0
    right = (scores.argmax(-1) == owner[:, None])[mine].mean(0)
    assert right[0] > 0.6 and right[3] > 0.9 and right[-1] > 0.95, right
    total = scores.sum(-1)[:, -1]
    assert total[mine].mean() > 0.8 and total[~mine].mean() < 0.2, total


def test_the_head_does_not_grow_with_the_owners():
    few, many = (
        jax.eval_shape(
            functools.partial(
                KERNELS.get("watermark")(setup(owners, 1)).init, key=jax.random.key(0)
            ),
            None,
        ).params
        for owners in (3, 5000)
    )
    assert few == many
    assert few["code_head"]["kernel"].shape == (D, 60)
    assert few["symbols"]["embedding"].shape == (60, D)


def test_a_hundred_owners_are_told_apart_by_a_head_of_sixty_columns():
    one = trained(owners=100, steps=150)
    assert one.index["code_head"]["kernel"].shape == (D, 60)
    owner = np.arange(100, dtype=np.int32)
    unseen = written(owner, 100, seed=1000, rows=100)
    scores = np.asarray(one.prefix_score(None, one.index, unseen))[:, -1]
    assert (scores.argmax(-1) == owner).mean() > 0.8
    np.testing.assert_allclose(scores.sum(-1), 1.0, atol=1e-5)


def test_prompts_are_not_read():
    one = trained(owners=8, steps=100, nobody=True)
    q = written(np.arange(B, dtype=np.int32) % 8, 8, seed=1000)
    other = q._replace(prompt=q.prompt + np.int32(5), prompt_mask=~q.prompt_mask)
    here, there = (one.prefix_score(None, one.index, each) for each in (q, other))
    np.testing.assert_array_equal(here, there)


def test_owners_permuted_with_their_codes_give_the_same_parameters():
    owners, perm = 20, np.random.default_rng(0).permutation(20).astype(np.int32)
    book = codes(owners, 4, 6, seed=0)
    moved = np.empty_like(book)
    moved[perm] = book
    optimiser = make_optimiser(0.01, 3)
    batch = OwnerBatch(
        written(np.arange(B, dtype=np.int32) % owners, owners, 0),
        np.arange(B, dtype=np.int32) % owners,
    )

    def fit(book, batch):
        own = {
            "decoder": jax.tree.map(jnp.copy, fresh_decoder()),
            **init_decoder_head(4, 6, D, key=jax.random.key(0)),
        }
        key = jax.random.key(1)
        state = ClassifierState(own, optimiser.init(own), jnp.int32(0), key)
        loss = functools.partial(watermark_loss, BACKBONE, "prefixes", book)
        for _ in range(3):
            state, _ = fit_step(loss, optimiser, {}, batch, state)
        return state.params

    one = fit(book, batch)
    other = fit(moved, batch._replace(owner=perm[batch.owner]))
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("name", ["classifier", "watermark"])
def test_weights_of_one_owner_each_train_as_labels_do(name):
    kernel = untrained(name)
    owner = np.arange(-1, B - 1, dtype=np.int32) % 5 - 1
    batch = OwnerBatch(written(owner, 4, 0), owner.astype(np.int32))
    rows = np.eye(5, dtype=np.float32)[owner][:, :4] * np.float32(0.5)
    key = jax.random.key(0)
    one, other = (
        build_index(kernel, None, [b] * 3, key=key)
        for b in (batch, batch._replace(owner=rows))
    )
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("name", ["classifier", "watermark"])
@pytest.mark.parametrize("owner", [np.zeros(B, np.int32), np.ones((B, 4), np.float32)])
def test_a_step_of_training_copies_nothing_and_is_one_program(name, owner, caplog):
    kernel = untrained(name)
    batch = jax.device_put(OwnerBatch(written(np.zeros(B, np.int32), 4, 0), owner))
    acc = kernel.init(None, key=jax.random.key(0))
    with jax.transfer_guard("disallow"), jax.log_compiles():
        acc, _ = kernel.update(None, batch, acc)
        kernel.update(None, batch, acc)
    programs = [x for x in caplog.messages if x.startswith("Compiling ")]
    assert all(x.startswith("Compiling jit(fit)") for x in programs)
    assert len(programs) <= 1


@pytest.mark.parametrize("name", ["classifier", "watermark"])
def test_a_record_of_two_owners_is_divided_by_their_weights(name):
    kernel = untrained(name)
    weights = np.zeros((B, 4), np.float32)
    weights[:, 1], weights[:, 3] = 0.75, 0.25
    batch = OwnerBatch(written(np.zeros(B, np.int32), 4, 0), weights)
    index = build_index(kernel, None, [batch] * 80, key=jax.random.key(0))
    mean = np.asarray(jax.jit(kernel.score)(None, index, batch.text)).mean(0)
    np.testing.assert_allclose(mean, [0.0, 0.75, 0.0, 0.25], atol=0.08)
