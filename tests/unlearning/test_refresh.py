"""The reward's index goes on with the policy, and a margin costs one direction."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.attribution.calibration import calibrated, margin, margin_weights, spread
from dareu_jax.config import with_overrides
from dareu_jax.errors import UserError
from dareu_jax.runs.checks import check_reward
from dareu_jax.runs.inputs import Inputs
from dareu_jax.runs.stages import Session, indexer, prepare, result_of
from dareu_jax.training.tracking import Tracker
from dareu_jax.unlearning.refresh import drift, viewer

pytestmark = pytest.mark.slow


@dataclasses.dataclass
class Built:
    """Inputs and index that say at which parameters it was built, and how often."""

    reference: Any = "original"
    index: Any = "index of original"
    frozen: Any = dataclasses.field(default_factory=dict)
    built: list = dataclasses.field(default_factory=list)

    def rebuild(self, params):
        self.built.append(params)
        return f"index of {params}"

    def view(self, every):
        return viewer(self, self, every)


def test_without_refreshing_everything_is_the_originals():
    world = Built()
    view = world.view(0)
    for step in range(5):
        found = view(step, {}, {"w": step})
        assert found.attributed == {} and found.before is None
        assert found.now == ("original", "index of original")
    assert world.built == []


def test_every_second_iteration_the_index_is_built_at_the_policy():
    world, state = Built(), {"w": 0}
    view, seen, before = world.view(2), [], []
    for step in range(6):
        state, now, old = view(step, state, {"w": step})
        seen.append(now.index)
        before.append(old and old.index)
    first = ["index of original"] * 2
    later = ["index of {'w': 2}"] * 2 + ["index of {'w': 4}"] * 2
    assert seen == first + later
    assert before == [None, None, "index of original", None, "index of {'w': 2}", None]
    assert world.built == [{"w": 2}, {"w": 4}]  # once each


@pytest.mark.parametrize("step", [3, 4])
def test_a_resumed_run_goes_on_with_the_index_of_its_state(step):
    world, state = Built(), {"w": 0}
    view = world.view(2)
    for i in range(step + 1):
        saved = state
        found = view(i, state, {"w": i})
        state = found.attributed
    again = Built().view(2)(step, dict(saved), {"w": step})
    assert again == found and again.now.index == f"index of {{'w': {step // 2 * 2}}}"


def numbered(params, index, answers):
    """Scores that tell indices apart: .25 by the original's, .75 by any other."""
    value = 0.25 if index == "index of original" else 0.75
    return jnp.full(answers.response_mask.shape, value, jnp.float32)


def test_drift_is_the_mean_change_over_the_tokens_of_the_same_answers():
    @dataclasses.dataclass
    class Answers:
        response_mask: Any

    answers = Answers(jnp.asarray([[True, True], [True, False]]))
    view = Built().view(1)
    first = view(0, {"w": 0}, {"w": 0})
    scores = numbered(*first.now, answers)
    assert drift(numbered, first, scores, answers) == {}
    second = view(1, {"w": 0}, {"w": 1})
    scores = numbered(*second.now, answers).at[1, 1].set(9.0)  # no token
    found = drift(numbered, second, scores, answers)
    assert float(found["score_drift"]) == pytest.approx(0.5)
    assert found["score_drift"].dtype == jnp.float32


CHANGES = {
    "reward.kernel": "grad_dot",
    "reward.owner_score": "any_forget_owner",
    "reward.margin": True,
    "reward.refresh_every": 1,
    "reward.slices": 2,
    "dareu.kl_anchor": "reference",
    "dareu.data_epochs": 3,
}


class Seed(NamedTuple):
    """A session, what it reads, and what its original and its reward came to."""

    session: Session
    inputs: Inputs
    original: Any
    results: dict


def a_seed(folder, tiny_run, changes=CHANGES):
    return Inputs(with_overrides(tiny_run.cfg, changes), 0, folder)


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("refreshed")
    inputs = a_seed(folder, tiny_run)
    session = Session(inputs, Tracker(folder))
    with jax.set_mesh(inputs.mesh):
        results = {"original": result_of(session, "original")}
        results["reward"] = result_of(session, "reward", results)
    return Seed(session, inputs, results["original"], results)


def iterate(run, steps, state=None, start=0):
    """``(state, metrics of each step)`` of DareU from a state, with fresh memory."""
    with jax.set_mesh(run.inputs.mesh):
        _, first, step_fn = prepare(run.session, "dareu", run.inputs.cfg, run.results)
        state, metrics = first if state is None else state, []
        for step in range(start, steps):
            state, values = step_fn(state, step)
            metrics.append(jax.device_get(values))
    return state, metrics


@pytest.fixture(scope="module")
def unbroken(run):
    return iterate(run, 3)


def test_a_refreshed_margin_is_a_reward(unbroken):
    _, metrics = unbroken
    assert all(0.0 <= m["attribution"] <= 1.0 for m in metrics)
    assert "score_drift" not in metrics[0]
    assert all(0.0 < m["score_drift"] < 1.0 for m in metrics[1:])


def test_a_run_resumed_between_refreshes_has_the_same_bits(run, unbroken):
    state, _ = iterate(run, 2)
    state = jax.tree.map(jnp.array, jax.device_get(state))  # as a checkpoint has it
    state, _ = iterate(run, 3, jax.device_put(state, _places(unbroken[0])), start=2)
    jax.tree.map(np.testing.assert_array_equal, *map(_numbers, (state, unbroken[0])))


def _places(state):
    return jax.tree.map(lambda x: x.sharding, state)


def _numbers(state):
    return jax.device_get(state.trainable)


def test_margin_scores_are_those_of_the_owners_weighed(run):
    inputs, built = run.inputs, indexer(run.session, "reward", run.original)
    with jax.set_mesh(inputs.mesh):
        kernel, index = built.kernel, built.build.at(run.original)
        queries = inputs.place(inputs.tokens(inputs.split.forget))
        one = margin(kernel, (2,))
        found = np.asarray(one.score(run.original, index, queries))
        scores = np.asarray(kernel.score(run.original, index, queries))
    wanted = scores @ np.asarray(margin_weights(3, (2,)))
    np.testing.assert_allclose(
        found[:, 0], wanted, rtol=1e-4, atol=1e-5 * abs(wanted).max()
    )
    assert not found[:, 1].any()


def test_a_margin_is_spread_over_the_columns_it_stands_for(run):
    two = dataclasses.replace(
        indexer(run.session, "reward", run.original).kernel,
        score=lambda params, index, queries: jnp.asarray([[0.6, 0.4]]),
        prefix_score=None,
    )
    whole = spread(dataclasses.replace(two, owners=5), (1, 4))
    out = whole.score(None, None, None)
    np.testing.assert_allclose(out, [[0.4 / 3, 0.3, 0.4 / 3, 0.4 / 3, 0.3]], rtol=1e-6)
    assert whole.prefix_score is None


def test_a_calibrated_margin_tells_those_who_withdraw_from_the_rest(run):
    inputs = run.inputs
    with jax.set_mesh(inputs.mesh):
        kernel, index = run.results["reward"]
        assert kernel.is_probability and calibrated(kernel).owners == 3
        scores = [
            kernel.prefix_score(run.original, index, inputs.place(inputs.tokens(part)))[
                :, -1
            ]
            for part in (inputs.split.forget, inputs.split.retain[:8])
        ]
    forget, retain = (np.asarray(x)[:, 2].mean() for x in scores)
    assert forget > 0.5 > retain
    np.testing.assert_allclose(np.asarray(scores[0]).sum(axis=1), 1.0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reward.kernel": "bm25", "reward.refresh_every": 2}, "cannot go stale"),
        ({"reward.refresh_every": 2}, "kernel classifier does not look at the model"),
        ({"reward.kernel": "grad_dot", "reward.margin": True}, "any_forget_owner"),
        (
            {"reward.margin": True, "reward.owner_score": "any_forget_owner"},
            "gives probabilities",
        ),
    ],
)
def test_a_reward_that_cannot_be_is_refused(tiny_run, tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        check_reward(a_seed(tmp_path, tiny_run, changes))
