"""The loop every stage runs in: resume, stop, refuse what is not a number."""

import dataclasses
import errno
import io
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from dareu_jax.config import GuardConfig
from dareu_jax.errors import Preempted, TrainingError
from dareu_jax.parallel import Preemption
from dareu_jax.storage import integrity
from dareu_jax.storage.checkpoints import Checkpoints
from dareu_jax.storage.integrity import problem
from dareu_jax.training.guards import Guards
from dareu_jax.training.loop import Stage, run_stage
from dareu_jax.training.progress import Progress
from dareu_jax.training.throughput import Stopwatch
from dareu_jax.training.tracking import Tracker


class Killed(Exception):
    """The end of a process, as far as a test goes."""


@pytest.fixture
def stage(tmp_path):
    """A stage in a fresh folder, and what it printed."""
    said = io.StringIO()
    made = Stage(
        name="walk",
        seed=7,
        folder=tmp_path / "checkpoints" / "walk",
        keep=2,
        save_every=4,
        log_every=2,
        tracker=Tracker(tmp_path),
        progress=Progress(Console(file=said, width=200)),
        headline="loss",
        remedy="walk slower",
        preemption=Preemption(),
        watch=Stopwatch(),
    )
    yield made, said
    made.tracker.close()


def start():
    return {"at": jnp.float32(1.0), "count": jnp.int32(0)}


def step_fn(bad=None, kill=None, calls=None):
    def step(state, number):
        if kill is not None and number == kill:
            raise Killed
        if calls is not None:
            calls.append(number)
        at = state["at"] * jnp.float32(1.1) + jnp.float32(number)
        loss = jnp.float32(np.nan if number + 1 == bad else 1.0 / (number + 1))
        return {"at": at, "count": state["count"] + 1}, {"loss": loss, "other": at}

    return step


def lines(stage):
    text = (stage.folder.parent.parent / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_a_stage_ends_with_its_state_saved_and_its_steps_logged(stage):
    made, said = stage
    state, meta = run_stage(made, start(), 9, step_fn())
    assert int(state["count"]) == 9
    assert meta["done"] and meta["stopped"] is None and meta["wall_s"] >= 0.0
    assert [x["step"] for x in lines(made)] == [2, 4, 6, 8, 9]  # and the last
    assert lines(made)[0].keys() == {"seed", "stage", "step", "loss", "other"}
    assert {(x["seed"], x["stage"]) for x in lines(made)} == {(7, "walk")}
    with Checkpoints(made.folder) as saved:
        assert saved.steps() == [8, 9]
    assert "seed 7 walk: done" in said.getvalue() and "loss 0.1111" in said.getvalue()


def test_steps_that_are_not_logged_are_counted_with_what_was_last_known(stage):
    made, said = stage

    def step(state, number):
        if number in (3, 6):
            made.progress.tick()
        return step_fn()(state, number)

    run_stage(dataclasses.replace(made, log_every=4), start(), 9, step)
    lines = re.findall(r"seed 7 walk: (\d/9), .*", said.getvalue())
    assert lines == ["3/9", "6/9"]
    assert re.search(r"6/9, \d+ s left, loss 0.2500\n", said.getvalue())


def test_a_finished_stage_takes_no_step_and_writes_nothing(stage):
    made, _ = stage
    first, meta = run_stage(made, start(), 9, step_fn())
    before = {p: p.stat().st_mtime_ns for p in made.folder.rglob("*") if p.is_file()}
    logged, calls = lines(made), []
    again, same = run_stage(made, start(), 9, step_fn(calls=calls))
    assert calls == [] and same == meta and lines(made) == logged
    np.testing.assert_array_equal(again["at"], first["at"])
    after = {p: p.stat().st_mtime_ns for p in made.folder.rglob("*") if p.is_file()}
    assert after == before


def test_the_steps_of_the_lowest_headline_stay_beside_the_newest(stage):
    made, _ = stage
    made = dataclasses.replace(made, save_every=1, keep=1, keep_best=2)
    losses = [5.0, 1.0, 3.0, 2.0, 4.0, 6.0, 7.0]

    def step(state, number):
        if number == 5 and not calls:
            calls.append(number)
            raise Killed
        state = {"at": state["at"], "count": state["count"] + 1}
        return state, {"loss": jnp.float32(losses[number]), "other": -state["at"]}

    calls = []
    with pytest.raises(Killed):
        run_stage(made, start(), 7, step)
    run_stage(made, start(), 7, step)
    with Checkpoints(made.folder) as saved:
        assert saved.steps() == [2, 4, 7]
        assert int(saved.at(4, start())[1]["count"]) == 4


class Taken(Preemption):
    """A machine that is taken away at once."""

    def has_come(self):
        return True


def test_a_stage_whose_machine_is_taken_says_what_is_saved(stage, monkeypatch):
    made, _ = stage
    made = dataclasses.replace(made, preemption=Taken())
    with pytest.raises(Preempted, match="seed 7 walk is saved at step 1"):
        run_stage(made, start(), 9, step_fn())
    assert problem(made.folder / "1") == ""

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(integrity, "write_manifest", full)
    with pytest.raises(TrainingError, match=r"no disk space left .* step 2; free"):
        run_stage(made, start(), 9, step_fn())


@pytest.mark.parametrize("kill", [0, 3, 4, 7, 8])
def test_a_killed_stage_goes_on_to_the_same_bits(stage, tmp_path, kill):
    made, _ = stage
    with pytest.raises(Killed):
        run_stage(made, start(), 9, step_fn(kill=kill))
    calls = []
    state, _ = run_stage(made, start(), 9, step_fn(calls=calls))
    assert calls[0] == kill // 4 * 4  # from the newest save on
    unbroken = start()
    for number in range(9):
        unbroken, _ = step_fn()(unbroken, number)
    np.testing.assert_array_equal(state["at"], unbroken["at"])
    steps = [x["step"] for x in lines(made)]
    assert steps == [2, 4, 6, 8, 9]  # nothing twice, nothing missing


def test_a_loss_that_is_not_a_number_names_stage_step_and_remedy(stage):
    made, _ = stage
    with pytest.raises(TrainingError) as error:
        run_stage(made, start(), 9, step_fn(bad=6))
    for part in ("seed 7 walk", "loss is nan", "step 6", "walk slower"):
        assert part in str(error.value)
    assert str(made.folder) in str(error.value)
    with Checkpoints(made.folder) as saved:
        step, state, _ = saved.latest(start())
    assert step == 4 and int(state["count"]) == 4  # the last good one stays
    assert all(x["loss"] is not None for x in lines(made))


def test_infinite_metrics_are_refused_too(stage):
    made, _ = stage

    def step(state, number):
        return state, {"loss": jnp.float32(1.0), "kl": jnp.float32(-np.inf)}

    with pytest.raises(TrainingError, match="kl is -inf at step 2"):
        run_stage(made, start(), 9, step)


def test_the_last_step_is_checked_before_it_is_saved(stage):
    made, _ = stage
    with pytest.raises(TrainingError, match="step 9"):
        run_stage(made, start(), 9, step_fn(bad=9))
    with Checkpoints(made.folder) as saved:
        assert saved.steps()[-1] == 8


@pytest.mark.parametrize("bad", [4, 9])
def test_a_state_that_is_no_number_is_never_saved(stage, bad):
    """The loss of a step is taken before its update, so it cannot tell."""
    made, _ = stage

    def step(state, number):
        at = state["at"] if number + 1 < bad else jnp.float32(np.inf)
        return {"at": at, "count": state["count"] + 1}, {"loss": jnp.float32(1.0)}

    with pytest.raises(TrainingError, match=rf"seed 7 walk: .*step {bad};.*slower"):
        run_stage(made, start(), 9, step)
    with Checkpoints(made.folder) as saved:
        assert saved.steps() == ([4, 8] if bad == 9 else [])


def test_nothing_is_compiled_to_check_a_state(stage, caplog):
    state = {"at": jnp.ones((3, 7)), "low": jnp.ones(5, jnp.bfloat16)}
    with jax.log_compiles():
        run_stage(stage[0], state, 4, lambda x, number: (x, {"loss": 1.0}))
    assert not [x for x in caplog.messages if x.startswith("Compiling ")]


def short(broken):
    cfg = GuardConfig(min_length=0.5, patience=2, utility_floor=None)
    return Guards(cfg, broken)


def shrinking(kill=None):
    def step(state, number):
        if number == kill:
            raise Killed
        ratio = 0.9 if number < 3 else 0.1  # from step 4 on
        state = {"at": state["at"], "count": state["count"] + 1}
        return state, {"loss": jnp.float32(1.0), "length_ratio": jnp.float32(ratio)}

    return step


def test_a_guard_stops_the_stage_and_the_reason_is_kept(stage):
    made, said = stage
    state, meta = run_stage(made, start(), 9, shrinking(), short)
    reason = "too_short: length_ratio 0.1 below 0.5 at step 5"
    assert meta["stopped"] == reason and meta["done"] and int(state["count"]) == 5
    assert f"seed 7 walk: stopped, {reason}" in said.getvalue()
    told = [x for x in said.getvalue().splitlines() if "/9" in x]
    assert [x.split(",")[0] for x in told] == [
        f"seed 7 walk: {n + 1}/9" for n in range(5)
    ]
    assert all("loss 1.0000" in line for line in told)
    again, same = run_stage(made, start(), 9, shrinking(), short)
    assert same["stopped"] == reason and int(again["count"]) == 5
    assert [x["step"] for x in lines(made)] == [1, 2, 3, 4, 5]  # guarded: every step


def test_violations_are_counted_across_a_kill(stage):
    made, _ = stage
    with pytest.raises(Killed):
        run_stage(made, start(), 9, shrinking(kill=4), short)
    _, meta = run_stage(made, start(), 9, shrinking(), short)
    assert meta["stopped"] == "too_short: length_ratio 0.1 below 0.5 at step 5"


def test_a_damaged_newest_checkpoint_is_passed_over_and_said(stage):
    made, said = stage
    first, _ = run_stage(made, start(), 9, step_fn())
    files = [p for p in (made.folder / "9").rglob("*") if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-3])
    state, _ = run_stage(made, start(), 9, step_fn())
    assert f"{made.folder} step 9 is unreadable" in said.getvalue()
    assert "using step 8 instead" in said.getvalue()
    np.testing.assert_array_equal(state["at"], first["at"])
    assert [x["step"] for x in lines(made)] == [2, 4, 6, 8, 9]
