"""From scores of any unit to DA in [0, 1], for whole responses and prefixes."""

import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from promises import names_copies

from dareu_jax import rl
from dareu_jax.attribution import Kernel, calibrated, fit_calibration, sliced
from dareu_jax.attribution.calibration import probabilities
from dareu_jax.config import with_overrides
from dareu_jax.data import TokenBatch
from dareu_jax.registry import KERNELS
from dareu_jax.runs.inputs import Inputs
from dareu_jax.runs.stages import Session, result_of
from dareu_jax.training.tracking import Tracker

pytestmark = pytest.mark.slow


def counting():
    """A kernel whose score is the number of tokens it is shown, times 1, 2, 3."""

    def score(params, index, queries):
        count = queries.response_mask.sum(axis=1).astype(jnp.float32)
        return count[:, None] * jnp.arange(1.0, 4.0)

    return Kernel(
        name="counting",
        owners=3,
        init=lambda params, *, key: None,
        update=lambda params, batch, acc: (acc, {}),
        finalize=lambda params, acc: acc,
        score=score,
    )


def queries(lengths, width):
    rows = len(lengths)
    tokens = np.ones((rows, width), np.int32)
    mask = np.arange(width)[None] < np.asarray(lengths)[:, None]
    index = np.arange(rows, dtype=np.int32)
    return TokenBatch(tokens[:, :2], mask[:, :2] | True, tokens, mask, index)


@pytest.mark.parametrize(
    ("slices", "seen"),
    [
        (7, [1, 2, 3, 4, 5, 6, 7]),
        (3, [3, 3, 3, 6, 6, 6, 7]),
        (1, [7, 7, 7, 7, 7, 7, 7]),
    ],
)
def test_a_token_gets_the_score_at_the_end_of_its_slice(slices, seen):
    kernel = sliced(counting(), slices, tokens=7)
    out = np.asarray(kernel.prefix_score(None, None, queries([7, 2], 7)))
    assert out.shape == (2, 7, 3)
    np.testing.assert_array_equal(out[0, :, 0], seen)
    np.testing.assert_array_equal(out[1, :, 1], 2 * np.minimum(seen, 2))
    np.testing.assert_array_equal(out[..., 2], 3 * out[..., 0])


def test_a_kernel_that_scores_prefixes_is_left_alone():
    kernel = dataclasses.replace(counting(), prefix_score=lambda *given: None)
    assert sliced(kernel, 3, None) is kernel


def test_slices_may_be_of_each_answer_and_another_row_may_cut_others():
    """Three slices of 7, 2 and 0 tokens are of 3, 1 and no tokens."""
    calls = []

    def score(params, index, queries):
        calls.append(1)
        return counting().score(params, index, queries)

    kernel = dataclasses.replace(counting(), score=score)
    own = sliced(sliced(kernel, 7, tokens=7), 3, None)
    assert own == sliced(kernel, 3, None)  # one program for both
    asked = queries([7, 2, 0], 7)
    out = np.asarray(own.prefix_score(None, None, asked))
    np.testing.assert_array_equal(out[0, :, 0], [3, 3, 3, 6, 6, 6, 7])
    np.testing.assert_array_equal(out[1, :, 0], [1, 2, 2, 2, 2, 2, 2])
    assert not out[2].any() and len(calls) == 1  # a loop
    mask = jnp.asarray(asked.response_mask)
    kappa = rl.kappa_of(mask, 3, None)
    found = rl.segment_scores(jnp.asarray(out[..., 0], jnp.float32), mask, kappa)
    np.testing.assert_array_equal(found, np.where(mask, out[..., 0], 0))


def test_calibration_undoes_scale_and_offset_and_is_sure_where_labels_allow():
    rng = np.random.default_rng(0)
    owner = np.arange(300, dtype=np.int32) % 3
    clear = rng.normal(size=(300, 3)) + 6.0 * np.eye(3)[owner]
    noise = rng.normal(size=(300, 3))
    sure = np.asarray(probabilities(fit_calibration(clear, owner), jnp.asarray(clear)))
    unsure = probabilities(fit_calibration(noise, owner), jnp.asarray(noise))
    np.testing.assert_allclose(sure.sum(axis=1), 1.0, atol=1e-5)
    assert sure[np.arange(300), owner].mean() > 0.97
    assert abs(float(np.asarray(unsure)[np.arange(300), owner].mean()) - 1 / 3) < 0.03
    moved = clear * [1e-6, 1e4, 5.0] + [3.0, -7e5, 0.1]
    again = probabilities(fit_calibration(moved, owner), jnp.asarray(moved))
    np.testing.assert_allclose(again, sure, atol=2e-3)


def test_a_calibrated_kernel_scores_probabilities():
    kernel = sliced(calibrated(counting()), 2, tokens=4)
    fitted = fit_calibration(np.asarray([[0.0, 1, 2], [3, 1, 1]]), np.asarray([2, 0]))
    index = (None, fitted)
    whole = kernel.score(None, index, queries([4, 1], 4))
    every = kernel.prefix_score(None, index, queries([4, 1], 4))
    assert kernel.is_probability
    np.testing.assert_allclose(every[:, -1], whole, atol=1e-6)
    np.testing.assert_allclose(np.asarray(every).sum(axis=-1), 1.0, atol=1e-6)


@pytest.fixture(scope="module")
def fine_tuned(tiny_run, tmp_path_factory) -> Path:
    """The folder of a run whose original is there."""
    folder = tmp_path_factory.mktemp("fine_tuned")
    session = Session(Inputs(tiny_run.cfg, 0, folder), Tracker(folder))
    result_of(session, "original")
    return folder


@pytest.mark.parametrize("name", KERNELS.names())
def test_every_kernel_serves_as_a_reward(tiny_run, fine_tuned, tmp_path, name):
    shutil.copytree(fine_tuned, tmp_path, dirs_exist_ok=True)
    cfg = with_overrides(tiny_run.cfg, {"reward.kernel": name, "reward.slices": 3})
    run = Inputs(cfg, 0, tmp_path)
    session = Session(run, Tracker(tmp_path))
    original = result_of(session, "original")
    kernel, index = result_of(session, "reward", {"original": original})
    answers = run.tokens(run.split.forget)
    scores = np.asarray(
        jax.jit(kernel.prefix_score)(original, index, run.place(answers))
    )
    assert scores.shape == (*answers.response.shape, 3)
    assert np.isfinite(scores).all() and scores.min() >= 0.0 and scores.max() <= 1.0
    if names_copies(kernel) and not kernel.is_fitted:
        own = scores[np.arange(len(scores)), -1, run.corpus.owners.index("owner_002")]
        assert own.mean() > 0.5  # a third by chance
