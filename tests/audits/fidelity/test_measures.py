"""Metrics of attribution against retraining, by numbers made by hand."""

import itertools

import numpy as np
import pytest

from dareu_jax.audits.fidelity.measures import (
    brittleness,
    calibration_error,
    correlations,
    lds,
    leave_one_out,
    reciprocal_ranks,
    subsets,
    tail_patch,
    top_is_right,
)

pytestmark = pytest.mark.slow

MASKS = np.array(
    [
        [True, True, False, False],
        [True, False, True, False],
        [True, False, False, True],
        [False, True, True, False],
        [False, True, False, True],
        [False, False, True, True],
    ]
)
WORTH = np.array([[8.0, 4.0, 2.0, 1.0], [0.1, 0.7, 0.2, 0.4]])
OUTCOMES = WORTH @ MASKS.T
"""What retraining would show if every owner added a fixed worth."""


def test_subsets_are_different_and_of_one_size():
    masks = subsets(10, count=16, share=0.5)
    assert masks.shape == (16, 10) and masks.dtype == bool
    assert (masks.sum(axis=1) == 5).all()
    assert len({row.tobytes() for row in masks}) == 16


def test_subsets_depend_on_the_seed_alone():
    one, same, other = (subsets(10, 16, 0.5, seed) for seed in (0, 0, 1))
    assert np.array_equal(one, same) and not np.array_equal(one, other)


def test_subsets_are_all_there_are_where_more_are_asked_for():
    found = {tuple(np.flatnonzero(row)) for row in subsets(4, count=20, share=0.5)}
    assert found == set(itertools.combinations(range(4), 2))


def test_a_share_of_the_owners_is_rounded():
    assert (subsets(10, 4, 0.26).sum(axis=1) == 3).all()


def test_correlation_of_ranks_by_hand():
    """Ranks 1 2 3 4 and 2 1 4 3: 1 - 6 * 4 / (4 * 15) = 0.6."""
    a = np.array([[1.0, 2.0, 3.0, 4.0]])
    b = np.array([[5.0, -1.0, 100.0, 7.0]])
    assert correlations(a, b) == pytest.approx([0.6])


def test_correlation_gives_ties_their_mean_rank():
    """Ranks 1.5 1.5 3 and 1 2 3: 1.5 / sqrt(1.5 * 2)."""
    found = correlations(np.array([[0.0, 0.0, 1.0]]), np.array([[1.0, 2.0, 3.0]]))
    assert found == pytest.approx([0.75**0.5])


def test_correlation_with_a_flat_row_is_zero_and_no_nan():
    flat, rising = np.zeros((1, 3)), np.array([[1.0, 2.0, 3.0]])
    for a, b in ((flat, rising), (rising, flat), (flat, flat)):
        assert correlations(a, b).tolist() == [0.0]


def test_scores_that_retraining_bears_out_have_lds_one():
    assert lds(WORTH, MASKS, OUTCOMES) == pytest.approx([1.0, 1.0])


def test_lds_asks_for_the_order_alone():
    assert lds(3.0 * WORTH - 5.0, MASKS, np.exp(OUTCOMES)) == pytest.approx([1.0, 1.0])


def test_reversed_scores_have_lds_minus_one():
    assert lds(-WORTH, MASKS, OUTCOMES) == pytest.approx([-1.0, -1.0])


def test_lds_by_hand():
    """Subsets' sums 3 4 5 5 6 7 against outcomes 1 to 6: one tie, ranks 3.5 3.5."""
    scores = np.array([[1.0, 2.0, 3.0, 4.0]])
    found = lds(scores, MASKS, np.array([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]))
    assert found == pytest.approx([17.0 / (17.0 * 17.5) ** 0.5])


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -1.0 / 3.0, 1e-8, 12345.678])
@pytest.mark.parametrize("owners", [3, 7, 10, 20])
def test_a_constant_has_lds_zero_to_the_last_bit(value, owners):
    masks = subsets(owners, 16, 0.5)
    outcomes = np.random.default_rng(0).normal(size=(5, len(masks)))
    for dtype in (np.float32, np.float64):
        scores = np.full((5, owners), value, dtype)
        assert lds(scores, masks, outcomes).tolist() == [0.0] * 5


def test_a_constant_that_differs_by_query_has_lds_zero():
    scores = np.array([[0.1] * 4, [0.7] * 4])
    assert lds(scores, MASKS, OUTCOMES).tolist() == [0.0, 0.0]


def test_subsets_of_different_sizes_are_refused():
    masks = np.array([[True, False, False], [True, True, False]])
    with pytest.raises(ValueError, match="one size"):
        lds(np.ones((1, 3)), masks, np.ones((1, 2)))


def test_random_scores_have_mean_lds_zero():
    rng = np.random.default_rng(0)
    masks = subsets(10, 16, 0.5)
    found = lds(rng.normal(size=(4000, 10)), masks, rng.normal(size=(4000, 16)))
    assert abs(found.mean()) < 4.0 * found.std() / 4000**0.5
    assert found.std() == pytest.approx(15**-0.5, rel=0.05)


def test_leaving_owners_out_bears_scores_out():
    whole = np.array([-1.0, -2.0])
    without = whole[:, None] - WORTH
    assert leave_one_out(WORTH, whole, without) == pytest.approx([1.0, 1.0])
    assert leave_one_out(-WORTH, whole, without) == pytest.approx([-1.0, -1.0])
    assert leave_one_out(np.ones((2, 4)), whole, without).tolist() == [0.0, 0.0]


def test_ranks_of_the_true_owner():
    scores = np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    owner = np.array([0, 1, 2])
    assert reciprocal_ranks(scores, owner) == pytest.approx([1.0, 1 / 2, 1 / 3])
    assert top_is_right(scores, owner).tolist() == [1.0, 0.0, 0.0]


def test_ties_share_their_rank_and_their_recall():
    """Two at the top: ranks 1 and 2, so 1.5 each, and half a hit."""
    scores, owner = np.array([[2.0, 2.0, 1.0]] * 2), np.array([0, 2])
    assert reciprocal_ranks(scores, owner) == pytest.approx([1 / 1.5, 1 / 3])
    assert top_is_right(scores, owner).tolist() == [0.5, 0.0]


def test_a_constant_recalls_one_in_as_many_as_there_are_owners():
    assert top_is_right(np.ones((3, 5)), np.array([0, 3, 4])).tolist() == [0.2] * 3


def test_probabilities_that_come_true_have_no_calibration_error():
    """Sure to 0.8 and right four times of five; sure to 0.6, right three of five."""
    four, three = [0.8, 0.2], [0.6, 0.4]
    probabilities = np.array([four] * 5 + [three] * 5)
    owner = np.array([0, 0, 0, 0, 1, 0, 0, 0, 1, 1])
    assert calibration_error(probabilities, owner) == pytest.approx(0.0, abs=1e-12)


def test_calibration_error_by_hand():
    """Sure to 0.9, right half the time: 0.4; sure to 0.6, always right: 0.4 too."""
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]])
    assert calibration_error(probabilities, np.array([0, 1, 0, 1])) == pytest.approx(
        0.5 * 0.4 + 0.5 * 0.4
    )


def test_calibration_error_of_one_who_is_always_sure_and_wrong():
    probabilities = np.array([[1.0, 0.0], [1.0, 0.0]])
    assert calibration_error(probabilities, np.array([1, 1])) == pytest.approx(1.0)


def test_a_constant_is_calibrated():
    probabilities = np.full((4, 5), 0.2)
    owner = np.array([0, 1, 2, 3])
    assert calibration_error(probabilities, owner) == pytest.approx(0.0, abs=1e-12)


def test_tail_patch_is_the_gain_of_the_best_owner_above_the_mean():
    gains = np.array([[0.3, 0.0, 0.0], [0.3, 0.0, 0.0], [0.3, 0.0, 0.0]])
    scores = np.array([[9.0, 1.0, 1.0], [1.0, 9.0, 1.0], [5.0, 5.0, 5.0]])
    assert tail_patch(scores, gains) == pytest.approx([0.2, -0.1, 0.0])


def test_tail_patch_of_a_tie_is_the_mean_of_the_tied():
    found = tail_patch(np.array([[2.0, 2.0, 1.0]]), np.array([[0.3, 0.1, 0.2]]))
    assert found == pytest.approx([0.0])


def test_an_answer_is_brittle_when_the_best_owner_halves_its_likelihood():
    """Without owner 0 a token loses 0.70 nats, more than log 2; without 1, 0.69."""
    whole, without = np.array([-1.0, -1.0]), np.array([[-1.70, -1.69], [-1.70, -1.69]])
    scores = np.array([[2.0, 1.0], [1.0, 2.0]])
    assert brittleness(scores, whole, without).tolist() == [1.0, 0.0]
    assert brittleness(np.ones((2, 2)), whole, without).tolist() == [0.5, 0.5]
