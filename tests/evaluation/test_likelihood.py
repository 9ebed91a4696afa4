"""Perplexity, four-answer probability and answer losses, by hand and by NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.errors import UserError
from dareu_jax.evaluation.likelihood import (
    answer_losses,
    four_answer_probability,
    perplexity,
)
from dareu_jax.evaluation.token_stats import token_stats
from dareu_jax.parallel import make_mesh, on_host, put_batch, shard

EOS = 2


@pytest.fixture(scope="module")
def answers(told):
    """Three answers to each question: the gold one, that one cut short, and "eos"."""
    mask, numbers = told.batch.response_mask, np.arange(8)
    length = mask.sum(axis=1)
    short = np.arange(mask.shape[1]) < np.maximum(1, length - 2)[:, None]
    cut = told.batch._replace(response_mask=short, response=told.batch.response.copy())
    cut.response[numbers, short.sum(axis=1) - 1] = EOS
    nothing = told.batch._replace(
        response=np.full((8, 1), EOS, np.int32), response_mask=np.ones((8, 1), bool)
    )
    return [told.batch, cut, nothing]


def by_numpy(told, batch):
    logits = told.logits(batch).astype(np.float64)
    logps = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    said = np.take_along_axis(logps, batch.response[..., None], -1)[..., 0]
    return [-row[keep].mean() for row, keep in zip(said, batch.response_mask)]


@pytest.fixture(scope="module")
def losses(told, answers):
    return answer_losses(told.model, told.params, answers)


def test_perplexity_by_hand():
    """Means 1 and 3 nats; of all three tokens together 5/3, and not 2."""
    logps = np.array([[-0.5, -1.5], [-3.0, math.nan]])
    found = perplexity(logps, np.array([[True, True], [True, False]]))
    assert found.total == pytest.approx(math.exp(5.0 / 3.0))
    assert found.rows.tolist() == pytest.approx([math.e, math.exp(3.0)])


def test_a_certain_model_has_perplexity_one_and_a_flat_one_the_vocabulary():
    mask = np.ones((3, 4), bool)
    assert perplexity(np.zeros((3, 4)), mask).total == 1.0
    flat = perplexity(np.full((3, 4), -math.log(64.0)), mask)
    assert flat.total == pytest.approx(64.0)
    assert flat.rows.tolist() == pytest.approx([64.0] * 3)


def test_perplexity_against_numpy(told):
    stats = token_stats(told.model, told.params, told.batch)
    mask = told.batch.response_mask
    found = perplexity(np.asarray(stats.logps), mask)
    rows = [np.exp(-row[keep].mean()) for row, keep in zip(told.picked, mask)]
    np.testing.assert_allclose(found.rows, rows, rtol=1e-5)
    assert found.total == pytest.approx(np.exp(-told.picked[mask].mean()), rel=1e-5)


def test_no_perplexity_of_a_broken_model_or_of_nothing(told, broken):
    mask = told.batch.response_mask
    stats = token_stats(told.model, broken, told.batch)
    with pytest.raises(UserError, match=r"perplexity: nan at index \(0, 0\)"):
        perplexity(np.asarray(stats.logps), mask)
    with pytest.raises(UserError, match="perplexity: row 0 has no response token"):
        perplexity(np.zeros((1, 3)), np.zeros((1, 3), bool))
    with pytest.raises(UserError, match="perplexity: inf at index 0"):
        perplexity(np.full((1, 3), -1000.0), np.ones((1, 3), bool))


def test_four_answers_by_hand():
    right = np.array([0.6, 0.0, 0.25])
    wrong = np.array([[0.1, 0.1, 0.2], [0.5, 0.0, 0.0], [0.25, 0.25, 0.25]])
    found = four_answer_probability(right, wrong)
    assert found.tolist() == pytest.approx([0.6, 0.0, 0.25], abs=1e-9)


def test_four_answers_that_are_all_impossible_score_nothing():
    found = four_answer_probability(np.zeros(1), np.zeros((1, 3)))
    assert found.tolist() == [0.0]


def test_four_answers_without_a_number_are_refused():
    wrong = np.full((2, 3), 0.1)
    with pytest.raises(UserError, match="right answers: nan at index 1"):
        four_answer_probability(np.array([0.5, np.nan]), wrong)
    wrong[1, 2] = np.nan
    with pytest.raises(UserError, match=r"wrong answers: nan at index \(1, 2\)"):
        four_answer_probability(np.full(2, 0.5), wrong)


@pytest.mark.parametrize("bad", [-0.1, 1.5])
def test_four_answers_that_are_no_probabilities_are_refused(bad):
    with pytest.raises(ValueError, match=r"right answers: .* are not in \[0, 1\]"):
        four_answer_probability(np.array([bad]), np.full((1, 3), 0.1))
    with pytest.raises(ValueError, match=r"right answers \(1,\), wrong ones \(2, 3\)"):
        four_answer_probability(np.array([0.5]), np.full((2, 3), 0.1))


def test_losses_of_answers_against_numpy(told, answers, losses):
    assert losses.shape == (8, 3) and losses.dtype == jnp.float32
    for column, batch in enumerate(answers):
        expected = by_numpy(told, batch)
        np.testing.assert_allclose(losses[:, column], expected, atol=1e-5)


def test_the_end_of_text_is_a_token_of_its_answer(told, losses):
    """An answer of nothing but the end of text costs what that token costs."""
    np.testing.assert_allclose(losses[:, 2], -told.logps[:, 0, EOS], atol=1e-5)


def test_losses_do_not_depend_on_padding(told, answers, losses, pad):
    wide = [pad(batch, left=5, right=4) for batch in answers[:2]]
    found = answer_losses(told.model, told.params, wide)
    np.testing.assert_allclose(found, losses[:, :2], atol=1e-5)


def test_losses_on_eight_devices(told, answers, losses):
    mesh = make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        params = shard(told.params, mesh=mesh)
        placed = [put_batch(batch, mesh) for batch in answers[:1]]
        found = on_host(answer_losses(told.model, params, placed))
    np.testing.assert_allclose(found[:, 0], losses[:, 0], atol=1e-5)


def test_equal_answers_share_the_probability(told):
    same = [told.batch] * 4
    chances = np.exp(-np.asarray(answer_losses(told.model, told.params, same)))
    found = four_answer_probability(chances[:, 0], chances[:, 1:])
    np.testing.assert_allclose(found, [0.25] * 8, atol=1e-5)


def test_an_answer_without_a_token_and_a_broken_model_have_no_loss(told, broken):
    mask = told.batch.response_mask.copy()
    mask[3] = False
    empty = told.batch._replace(response_mask=mask)
    found = answer_losses(told.model, told.params, [told.batch, empty])
    assert np.argwhere(np.isnan(np.asarray(found))).tolist() == [[3, 1]]
    assert np.isnan(answer_losses(told.model, broken, [told.batch])).all()


def test_answers_to_different_questions_are_refused(told):
    less = told.batch._replace(response=told.batch.response[:5])
    with pytest.raises(ValueError, match=r"have \[8, 5\] rows"):
        answer_losses(told.model, told.params, [told.batch, less])
    with pytest.raises(ValueError, match=r"have \[\] rows"):
        answer_losses(told.model, told.params, [])
