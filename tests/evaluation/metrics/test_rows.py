"""Checked values and masked means."""

import numpy as np
import pytest

from dareu_jax.errors import UserError
from dareu_jax.evaluation.metrics.rows import finite, means_of, tokens_of

MASK = np.array([[True, True, False], [True, False, False]])


def test_means_by_hand_ignore_what_is_outside_the_mask():
    values = np.array([[1.0, 2.0, np.nan], [5.0, np.inf, -7.0]])
    assert means_of("loss", values, MASK).tolist() == [1.5, 5.0]
    inside, count = tokens_of("loss", values, MASK)
    assert inside.tolist() == [[1.0, 2.0, 0.0], [5.0, 0.0, 0.0]]
    assert count.tolist() == [2, 1]


def test_no_rows_are_no_values():
    with pytest.raises(UserError, match="loss: there is no value"):
        means_of("loss", np.zeros((0, 3)), np.zeros((0, 3), bool))


def test_a_row_without_a_token_is_named():
    mask = MASK & np.array([[True], [False]])
    with pytest.raises(UserError, match="loss: row 1 has no response token"):
        means_of("loss", np.zeros((2, 3)), mask)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_place_of_a_value_that_is_not_finite_is_named(bad):
    values = np.zeros((2, 3))
    values[0, 1] = bad
    with pytest.raises(UserError, match=r"loss: -?(nan|inf) at index \(0, 1\), 1 of 6"):
        means_of("loss", values, MASK)
    with pytest.raises(UserError, match=r"loss: -?(nan|inf) at index 4, 1 of 6"):
        finite("loss", np.roll(values.ravel(), 3))


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"loss: values \(2, 2\) with a mask \(2, 3\)"):
        means_of("loss", np.zeros((2, 2)), MASK)
