"""Properties of every registered attribution kernel; a new one joins by its name."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from promises import names_copies

from dareu_jax.attribution import (
    Kernel,
    OwnerBatch,
    Setup,
    attribution_accuracy,
    build_index,
    last_valid,
)
from dareu_jax.attribution.kernel import or_one
from dareu_jax.attribution.kernels.classifier import owner_loss
from dareu_jax.config import with_overrides
from dareu_jax.data import NOBODY, TokenBatch, owner_labels, take
from dareu_jax.models import Decoder, decoder_config
from dareu_jax.registry import KERNELS
from dareu_jax.training.finetune import finetune_step, init_training
from dareu_jax.training.optimiser import make_optimiser

pytestmark = pytest.mark.slow

STEPS = 60
CASES = [(name, {}) for name in KERNELS.names()] + [
    ("classifier", {"classifier.nobody": True, "classifier.train_on": "prefixes"})
]


class Trained(NamedTuple):
    """A kernel with its index, and the owned training text it was built from.

    ``queries`` are the heads of those responses, of many lengths; ``score`` and
    ``prefix_score`` are jitted.
    """

    kernel: Kernel
    cfg: Any
    params: Any
    index: Any
    gold: TokenBatch
    queries: TokenBatch
    owner: np.ndarray
    score: Any
    prefix_score: Any


def assert_near(found, wanted):
    """Within 1e-5, of the largest score where scores are larger than 1."""
    wanted = np.asarray(wanted)
    np.testing.assert_allclose(found, wanted, atol=1e-5 * max(1.0, abs(wanted).max()))


def text_of(run, cfg):
    """Training text with its owners; nobody's only where a class is theirs."""
    records = tuple(r for r in run.corpus.train if cfg.nobody or r.owner != NOBODY)
    return OwnerBatch(run.tokens(records), owner_labels(records, run.corpus.owners))


@pytest.fixture(scope="module")
def tuned(tiny_run):
    """The attributed model: it has read the owners' texts for a while."""
    model, optimiser = tiny_run.model, make_optimiser(5e-3, STEPS)
    state = init_training(model, optimiser, key=jax.random.key(1))
    text = tiny_run.tokens(tiny_run.corpus.train)
    for _ in range(STEPS):
        key = jax.random.key(2)
        state, _ = finetune_step(model, optimiser, state, {}, text, key=key)
    return state.params


@pytest.fixture(
    scope="module",
    params=CASES,
    ids=lambda case: "-".join([case[0], *(k.split(".")[1] for k in case[1])]),
)
def trained(request, tiny_run, tuned):
    name, changes = request.param
    cfg = with_overrides(tiny_run.cfg, changes).classifier
    owners, vocab = len(tiny_run.corpus.owners), tiny_run.tokenizer.vocab_size
    shape = decoder_config(cfg.model, vocab)
    backbone = Decoder(dataclasses.replace(shape, dropout=cfg.dropout))
    make = KERNELS.get(name)
    kernel = make(
        Setup(
            model=tiny_run.model,
            owners=owners,
            cfg=tiny_run.cfg.attribution,
            classifier=cfg,
            steps=STEPS,
            backbone=backbone,
            snapshots=lambda: [(tuned, 0.5), (tuned, 1.0)],
        )
    )
    batch, params = text_of(tiny_run, cfg), tuned
    times = STEPS if kernel.is_fitted else 1
    index = build_index(kernel, params, [batch] * times, key=jax.random.key(0))
    mine = np.flatnonzero(batch.owner >= 0)
    gold, owner = take(batch.text, mine), batch.owner[mine]
    lengths = np.random.default_rng(0).integers(1, gold.response.shape[1], len(owner))
    short = np.arange(gold.response.shape[1]) < lengths[:, None]
    queries = gold._replace(response_mask=gold.response_mask & short)
    score = jax.jit(kernel.score)
    prefix_score = kernel.prefix_score and jax.jit(kernel.prefix_score)
    return Trained(
        kernel, cfg, params, index, gold, queries, owner, score, prefix_score
    )


@pytest.fixture(scope="module")
def scores(trained):
    return np.asarray(trained.score(trained.params, trained.index, trained.queries))


def test_scores_are_finite_float32_with_a_column_per_owner(trained, scores):
    assert scores.shape == (len(trained.owner), trained.kernel.owners) == (24, 3)
    assert scores.dtype == np.float32 and np.isfinite(scores).all()


def test_probabilities_sum_to_one_or_less_where_nobody_has_a_class(trained, scores):
    if not trained.kernel.is_probability:
        pytest.skip("not a probability")
    total = scores.sum(axis=1)
    assert (scores >= 0.0).all()
    if trained.cfg.nobody:
        assert (total < 1.0).all() and (total > 0.0).all()
    else:
        np.testing.assert_allclose(total, 1.0, atol=1e-5)


def test_more_padding_changes_nothing(trained, scores):
    q, more = trained.queries, ((0, 0), (0, 17))
    wide = q._replace(
        response=np.pad(q.response, more, constant_values=7),
        response_mask=np.pad(q.response_mask, more),
    )
    out = trained.score(trained.params, trained.index, wide)
    assert_near(out, scores)


def test_content_of_the_padding_changes_nothing(trained, scores):
    q = trained.queries
    assert not q.response_mask.all()
    junk = q._replace(
        response=np.where(q.response_mask, q.response, 11).astype(np.int32),
        prompt=np.where(q.prompt_mask, q.prompt, 11).astype(np.int32),
    )
    out = trained.score(trained.params, trained.index, junk)
    assert_near(out, scores)


def test_batch_size_and_order_change_nothing(trained, scores):
    order = np.random.default_rng(0).permutation(len(scores))
    out = trained.score(trained.params, trained.index, take(trained.queries, order))
    assert_near(out, scores[order])
    few = np.asarray([5, 17, 2])
    out = trained.score(trained.params, trained.index, take(trained.queries, few))
    assert_near(out, scores[few])


def test_the_row_in_the_records_is_no_hint(trained, scores):
    other = trained.queries._replace(index=trained.queries.index[::-1] * 5 + 1)
    out = trained.score(trained.params, trained.index, other)
    np.testing.assert_array_equal(out, scores)


def test_the_classifier_does_not_read_prompts(trained, scores):
    if trained.kernel.name != "classifier":
        pytest.skip("another kernel may read prompts")
    q = trained.queries
    other = q._replace(prompt=q.prompt[::-1], prompt_mask=q.prompt_mask[::-1])
    out = trained.score(trained.params, trained.index, other)
    np.testing.assert_array_equal(out, scores)


def test_one_pass_over_prefixes_equals_one_call_per_prefix(trained):
    if trained.prefix_score is None:
        pytest.skip("this kernel has no prefix_score")
    q = trained.gold
    every = trained.prefix_score(trained.params, trained.index, q)
    assert every.shape == (*q.response.shape, 3) and every.dtype == jnp.float32
    width = q.response.shape[1]
    for t in range(width):
        cut = q._replace(response_mask=q.response_mask & (np.arange(width) <= t))
        alone = trained.score(trained.params, trained.index, cut)
        there = q.response_mask[:, t]
        np.testing.assert_allclose(
            np.asarray(every)[there, t], np.asarray(alone)[there], atol=1e-5
        )


def test_whole_responses_score_as_their_last_prefix(trained, scores):
    if trained.prefix_score is None:
        pytest.skip("this kernel has no prefix_score")
    every = trained.prefix_score(trained.params, trained.index, trained.queries)
    last = last_valid(every, trained.queries.response_mask)
    np.testing.assert_allclose(last, scores, atol=1e-5)


def test_a_copied_response_scores_its_owner_first(trained):
    if not names_copies(trained.kernel):
        pytest.skip("this kernel does not promise it")
    scores = np.asarray(trained.score(trained.params, trained.index, trained.gold))
    assert (scores.argmax(axis=1) == trained.owner).mean() > 0.9


def test_accuracy_by_prefix_ends_at_that_of_whole_responses(trained, scores):
    if trained.prefix_score is None:
        pytest.skip("this kernel has no prefix_score")
    named = trained.queries._replace(index=trained.owner)
    hits = attribution_accuracy(trained.kernel, trained.params, trained.index, named)
    assert hits.dtype == jnp.float32 and hits.shape == named.response.shape
    np.testing.assert_array_equal(hits[:, -1], scores.argmax(1) == trained.owner)


def test_permuted_owners_give_permuted_columns(trained, tiny_run):
    if trained.kernel.is_control:
        pytest.skip("a control reads no owners")
    batch = text_of(tiny_run, trained.cfg)
    perm = np.asarray([2, 0, 1], np.int32)
    moved = np.where(batch.owner >= 0, perm[batch.owner], -1).astype(np.int32)
    key = jax.random.key(4)
    one, other = (
        trained.score(
            trained.params,
            build_index(trained.kernel, trained.params, [b] * 5, key=key),
            trained.queries,
        )
        for b in (batch, batch._replace(owner=moved))
    )
    assert np.ptp(np.asarray(one)) > 0.01
    np.testing.assert_allclose(np.asarray(other)[:, perm], one, atol=2e-5)


LOGITS = np.asarray(
    [
        [[1.0, 0.0], [0.0, 2.0], [0.5, 0.25]],
        [[9.0, -9.0], [3.0, 1.0], [7.0, 7.0]],
        [[0.0, 1.5], [8.0, 0.0], [0.0, 8.0]],
    ],
    np.float32,
)
OWNER = jnp.asarray([1, -1, 0], jnp.int32)
MASK = jnp.asarray([[1, 1, 0], [1, 1, 1], [1, 0, 0]], bool)


def nll(a: float, b: float) -> float:
    """-log of the first of two classes with logits a and b."""
    return float(np.log1p(np.exp(b - a)))


@pytest.mark.parametrize(
    ("train_on", "loss"),
    [
        # record 0: label 1, ends at t = 1; record 1: no class; record 2: label 0, t = 0
        ("whole", (nll(2.0, 0.0) + nll(0.0, 1.5)) / 2),
        ("prefixes", ((nll(0.0, 1.0) + nll(2.0, 0.0)) / 2 + nll(0.0, 1.5)) / 2),
    ],
)
def test_owner_loss_worked_out_by_hand(train_on, loss):
    out, accuracy = owner_loss(jnp.asarray(LOGITS), OWNER, MASK, train_on)
    assert out.dtype == accuracy.dtype == jnp.float32
    assert float(out) == pytest.approx(loss, rel=1e-6)
    assert float(accuracy) == 0.5  # record 0 is right, record 2 wrong


@pytest.mark.parametrize("train_on", ["whole", "prefixes"])
def test_records_without_a_class_give_no_loss_and_no_gradient(train_on):
    nobody = jnp.full(3, -1, jnp.int32)

    def loss(logits, owner):
        return owner_loss(logits, owner, MASK, train_on)[0]

    assert float(loss(jnp.asarray(LOGITS), nobody)) == 0.0
    grads = jax.grad(loss)(jnp.asarray(LOGITS), OWNER)
    assert not np.asarray(grads)[1].any() and np.asarray(grads)[0].any()


def test_last_valid_takes_the_last_true_entry():
    x = jnp.arange(12.0).reshape(2, 3, 2)
    mask = jnp.asarray([[1, 1, 0], [1, 1, 1]], bool)
    np.testing.assert_array_equal(last_valid(x, mask), [[2.0, 3.0], [10.0, 11.0]])
    np.testing.assert_array_equal(last_valid(x[..., 0], mask), [2.0, 10.0])


def test_sums_are_divided_by_their_weight_and_nothing_by_one():
    weights = jnp.asarray([0.0, 0.25, 3.0])
    np.testing.assert_array_equal(or_one(weights), [1.0, 0.25, 3.0])
