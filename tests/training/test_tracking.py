"""Metrics on disk: what is written, and what a kill may leave behind."""

import json

import jax.numpy as jnp
import pytest

from dareu_jax.errors import UserError
from dareu_jax.training.tracking import FILE, SPEEDS, Tracker, read


def test_lines_and_scalars(tmp_path):
    with Tracker(tmp_path) as tracker:
        tracker.log("finetune", 1, {"loss": jnp.float32(0.5)}, seed=0)
        tracker.log("dareu", 2, {"loss": float("nan"), "kl": 1}, seed=3)
    assert read(tmp_path) == [
        {"seed": 0, "stage": "finetune", "step": 1, "loss": 0.5},
        {"seed": 3, "stage": "dareu", "step": 2, "loss": None, "kl": 1.0},
    ]
    assert "NaN" not in (tmp_path / FILE).read_text()
    assert len(list((tmp_path / "tb").rglob("events*"))) == 2


def test_truncate_keeps_other_stages_seeds_and_earlier_steps(tmp_path):
    with Tracker(tmp_path) as tracker:
        for seed in (0, 1):
            for stage in ("finetune", "dareu"):
                for step in range(4):
                    tracker.log(stage, step, {"loss": step}, seed=seed)
        tracker.truncate("dareu", 1, step=1)
        tracker.log("dareu", 2, {"loss": 9}, seed=1)
    lines = read(tmp_path)
    mine = [x["step"] for x in lines if (x["stage"], x["seed"]) == ("dareu", 1)]
    assert mine == [0, 1, 2]
    assert len(lines) == 3 * 4 + 3


def test_truncate_without_a_file(tmp_path):
    Tracker(tmp_path).truncate("dareu", 0, step=5)
    assert read(tmp_path) == []


@pytest.mark.parametrize("torn", ['{"seed": 0, "sta', '{"seed": 0', "\x00\x00\x00"])
def test_a_torn_last_line_is_dropped(tmp_path, torn):
    with Tracker(tmp_path) as tracker:
        tracker.log("dareu", 1, {"loss": 1}, seed=0)
    with (tmp_path / FILE).open("a") as file:
        file.write(torn)
    assert [line["step"] for line in read(tmp_path)] == [1]
    with Tracker(tmp_path) as tracker:
        tracker.log("dareu", 2, {"loss": 1}, seed=0)
    assert [line["step"] for line in read(tmp_path)] == [1, 2]
    assert len((tmp_path / FILE).read_text().splitlines()) == 2


def test_a_bad_line_in_the_middle_is_named(tmp_path):
    (tmp_path / FILE).write_text('{"step": 1}\nrubbish\n{"step": 2}\n')
    with pytest.raises(UserError, match="line 2 is not JSON"):
        read(tmp_path)


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    with Tracker(tmp_path) as tracker:
        tracker.log("dareu", 1, {"loss": 1}, seed=0)
        tracker.truncate("dareu", 0, step=0)
    assert not list(tmp_path.iterdir())


def test_a_trace_holds_the_steps_asked_for(tmp_path):
    with Tracker(tmp_path, traced=(2, 3)) as tracker:
        for step in range(1, 5):
            with tracker.step("dareu", step, seed=0):
                jnp.square(jnp.float32(step)).block_until_ready()
            made = list(tmp_path.glob("profile/dareu-seed0/**/*.xplane.pb"))
            assert bool(made) == (step >= 3)
    assert len(made) == 1 and b"dareu" in made[0].read_bytes()


def test_a_stage_that_ends_early_closes_its_trace(tmp_path):
    with Tracker(tmp_path, traced=(1, 9)) as tracker, tracker.step("prior", 1, seed=0):
        pass
    assert list(tmp_path.glob("profile/prior-seed0/**/*.xplane.pb"))


def test_speeds_have_a_file_of_their_own(tmp_path):
    fast = {"seconds": 0.5, "tokens_per_s": 40.0, "mfu": None}
    with Tracker(tmp_path) as tracker:
        tracker.throughput("dareu", 3, {"rollout": fast, "update": fast}, seed=1)
        tracker.throughput("dareu", 4, {}, seed=1)
    lines = [json.loads(x) for x in (tmp_path / SPEEDS).read_text().splitlines()]
    assert [line.pop("phase") for line in lines] == ["rollout", "update"]
    assert lines[0] == {"seed": 1, "stage": "dareu", "step": 3, **fast}
    assert read(tmp_path) == []
