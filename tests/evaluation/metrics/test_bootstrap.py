"""Bootstrap intervals: known answers, coverage, seeds, errors."""

import itertools

import numpy as np
import pytest
from scipy import stats

from dareu_jax.errors import UserError
from dareu_jax.evaluation.metrics import bootstrap
from dareu_jax.evaluation.metrics.bootstrap import interval, interval_of, intervals_of
from dareu_jax.evaluation.metrics.tow import tow


def auc(members, others):
    return float((members[:, None] < others[None]).mean())


def test_one_row_gives_its_value_twice():
    assert interval([0.25]) == (0.25, 0.25)
    assert interval_of(lambda x: x.mean(), np.array([0.25])) == (0.25, 0.25)


def test_equal_rows_give_their_value_twice():
    assert interval([0.1] * 7) == (0.1, 0.1)


def test_the_seed_decides_every_bit():
    values = np.random.default_rng(0).random(50)
    assert interval(values, seed=3) == interval(values, seed=3)
    assert interval(values, seed=3) != interval(values, seed=4)
    assert interval_of(np.mean, values, seed=3) == interval_of(np.mean, values, seed=3)


def test_two_rows_by_hand():
    """Means 0, 1/2, 1 with chances 1/4, 1/2, 1/4: the middle 40 % is 1/2 alone."""
    assert interval([0.0, 1.0], draws=4000, level=0.4) == (0.5, 0.5)
    assert interval([0.0, 1.0], draws=4000, level=0.6) == (0.0, 1.0)


def test_three_rows_against_all_27_resamplings():
    values = np.array([0.0, 1.0, 5.0])
    means = [np.mean(x) for x in itertools.product(values, repeat=3)]
    expected = np.quantile(means, [0.1, 0.9])
    np.testing.assert_allclose(interval(values, 20_000, 0.8), expected, atol=1e-9)


def test_it_is_as_wide_as_the_normal_interval_of_many_rows():
    values = np.random.default_rng(1).normal(size=2000)
    low, high = interval(values, draws=4000)
    error = values.std() / len(values) ** 0.5
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_95_percent_cover_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(2)
    found = [interval(rng.random(40), draws=400, seed=i) for i in range(400)]
    share = np.mean([low <= 0.5 <= high for low, high in found])
    assert 0.91 <= share <= 0.98


def test_little_memory_gives_the_same_draws(monkeypatch):
    values = np.random.default_rng(3).random(20)
    whole = interval(values, draws=100)
    monkeypatch.setattr(bootstrap, "AT_ONCE", 20 * 7)
    assert interval(values, draws=100) == whole


def test_an_auc_takes_samples_of_different_sizes():
    rng = np.random.default_rng(4)
    members, others = rng.normal(size=60), rng.normal(size=40) + 1.0
    low, high = interval_of(auc, members, others, draws=300)
    assert 0.0 < low < auc(members, others) < high < 1.0
    assert interval_of(auc, members, members + 100.0, draws=50) == (1.0, 1.0)


def test_columns_of_a_sample_stay_together():
    """A gap that is 0.1 on every row has no spread, however the rows spread."""
    one = np.random.default_rng(5).integers(0, 1000, 30).astype(float)
    pair = np.stack([one, one + 8.0], axis=1)
    gap = interval_of(lambda x: (x[:, 1] - x[:, 0]).mean(), pair, draws=100)
    assert gap == (8.0, 8.0)
    apart = interval_of(lambda x, y: y.mean() - x.mean(), one, one + 8.0, draws=100)
    assert apart[0] < 8.0 < apart[1]


def test_a_tow_of_identical_models_is_one():
    rng = np.random.default_rng(6)
    splits = [np.repeat(rng.random((n, 1)), 2, axis=1) for n in (10, 20, 15)]

    def statistic(*splits):
        u, r = ({str(i): x[:, j].mean() for i, x in enumerate(splits)} for j in (0, 1))
        return tow(u, r, ("0", "1", "2"))

    assert interval_of(statistic, *splits, draws=50) == (1.0, 1.0)


def test_no_value_and_values_that_are_no_numbers_are_refused():
    with pytest.raises(UserError, match="there is no value"):
        interval([])
    with pytest.raises(UserError, match="nan at index 1, 1 of 3"):
        interval([0.0, np.nan, 1.0])
    with pytest.raises(UserError, match=r"sample 1: inf at index \(0, 1\)"):
        interval_of(auc, np.zeros(2), np.array([[0.0, np.inf]]))
    with pytest.raises(UserError, match="sample 0: there is no value"):
        interval_of(np.mean, np.zeros(0))


def test_a_statistic_that_is_no_number_is_refused():
    with pytest.raises(UserError, match="bootstrapped statistic: nan at index 0"):
        interval_of(lambda x: float("nan"), np.ones(3), draws=5)


@pytest.mark.parametrize("bad", [{"draws": 0}, {"level": 0.0}, {"level": 1.0}])
def test_draws_and_levels_out_of_range_are_refused(bad):
    with pytest.raises(UserError, match=r"bootstrap: (0 draws|level)"):
        interval([0.0, 1.0], **bad)
    with pytest.raises(UserError, match=r"bootstrap: (0 draws|level)"):
        interval_of(np.mean, np.ones(3), **bad)


def by_hand(statistic, *samples, draws, seed):
    """Draws of every sample in turn, then the 2.5th and the 97.5th percentile."""
    rng = np.random.default_rng(seed)
    found = [
        statistic(*(x[rng.integers(0, len(x), len(x))] for x in samples))
        for _ in range(draws)
    ]
    return np.quantile(found, [0.025, 0.975])


def test_the_digits_are_those_of_the_definition_and_of_scipy(monkeypatch):
    rng = np.random.default_rng(7)
    values, others = rng.random(37), rng.random(21) + 0.2
    asked, whole = [], stats.bootstrap

    def counted(data, *args, **how):
        asked.append(how["method"])
        return whole(data, *args, **how)

    monkeypatch.setattr(bootstrap.stats, "bootstrap", counted)
    for seed in (0, 5):
        wanted = by_hand(np.mean, values, draws=200, seed=seed)
        found = interval(values, 200, seed=seed)
        np.testing.assert_allclose(found, wanted, rtol=1e-13)
        wanted = by_hand(auc, values, others, draws=200, seed=seed)
        found = interval_of(auc, values, others, draws=200, seed=seed)
        np.testing.assert_allclose(found, wanted, rtol=1e-13)
    assert asked == ["percentile"] * 4


def test_a_sample_of_one_row_stands_beside_one_of_several():
    values = np.random.default_rng(8).random(9)
    one = np.asarray([0.5])
    found = interval_of(lambda x, y: (y - x).mean(), one, values, draws=99)
    np.testing.assert_allclose(found, np.subtract(interval(values, 99), 0.5))


def test_several_numbers_of_the_same_rows_are_drawn_together():
    values = np.random.default_rng(9).random(12)

    def both(at):
        return [values[at].mean(), 2.0 * values[at].mean()]

    low, high = intervals_of(both, [12], draws=99)
    np.testing.assert_allclose([low[0], high[0]], interval(values, 99), rtol=1e-13)
    np.testing.assert_allclose([low[1], high[1]], [2.0 * low[0], 2.0 * high[0]])
