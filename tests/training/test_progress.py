"""Progress without a terminal: a line at least every 30 s, with the time left."""

import io
import re
import threading
import time

import pytest
from rich.console import Console

from dareu_jax.training import progress as shown
from dareu_jax.training.progress import PLAIN_EVERY_S, Progress, counter, counting


class Clock:
    """A clock that is set by hand."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def plain():
    """A progress that prints lines, its clock, and what it has printed so far."""
    said, clock = io.StringIO(), Clock()
    made = Progress(Console(file=said, width=200), clock)
    return made, clock, lambda: said.getvalue().splitlines()


def test_lines_come_often_enough():
    assert 5.0 <= PLAIN_EVERY_S < 30.0


def test_a_line_says_how_far_it_is_and_leaves_the_first_step_out(plain):
    progress, clock, lines = plain
    with progress.stage("seed 0 dareu", 40) as advance:
        clock.now += 25.0
        progress.tick()
        clock.now += 275.0  # the first step compiles
        advance(1, "")
        progress.tick()
        for step in range(2, 11):
            clock.now += 30.0
            advance(step, "attribution 0.5000")
        progress.tick()
        clock.now += 20.0  # within a step
        progress.tick()
        for step in range(11, 39):
            clock.now += 30.0
            advance(step, "attribution 0.2500")
        progress.tick()
    assert lines() == [
        "seed 0 dareu: 0/40, 25 s so far",
        "seed 0 dareu: 1/40, 5 min so far",
        "seed 0 dareu: 10/40, 15 min left, attribution 0.5000",
        "seed 0 dareu: 10/40, 15 min left, attribution 0.5000",
        "seed 0 dareu: 38/40, 61 s left, attribution 0.2500",
        "seed 0 dareu: done in 1430.0 s attribution 0.2500",
    ]


def test_hours_and_a_stage_that_goes_on_where_it_was_stopped(plain):
    progress, clock, lines = plain
    with progress.stage("train", 1000, done=600) as advance:
        clock.now += 500.0
        advance(601, "")
        clock.now += 90.0
        advance(602, "")
        progress.tick()
    assert lines()[0] == "train: 602/1000, 9.9 h left"


def test_a_stage_inside_another_stands_beside_it(plain):
    progress, clock, lines = plain
    with progress.stage("retrainings", 4) as advance:
        for number in range(1, 4):
            with progress.stage(f"retrained_{number}", 1):
                clock.now += 50.0
                if number == 3:
                    progress.tick()
            advance(number, "")
    assert lines() == [
        "retrained_1: done in 50.0 s",
        "retrained_2: done in 50.0 s",
        "retrainings: 2/4, 50 s left; retrained_3: 50 s so far",
        "retrained_3: done in 50.0 s",
        "retrainings: done in 150.0 s",
    ]
    progress.tick()
    assert len(lines()) == 5  # nothing is under way


def test_lines_are_printed_while_a_step_takes_long(monkeypatch):
    monkeypatch.setattr(shown, "PLAIN_EVERY_S", 0.02)
    said, before = io.StringIO(), threading.active_count()
    progress = Progress(Console(file=said, width=200))
    with pytest.raises(KeyError), progress.stage("slow", 3) as advance:
        advance(1, "loss 1.0")
        deadline = time.monotonic() + 60.0
        while said.getvalue().count("slow: 1/3") < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        raise KeyError
    assert said.getvalue().count("slow: 1/3") >= 3 and "done" not in said.getvalue()
    assert threading.active_count() == before  # nothing goes on printing


def test_a_process_that_does_not_print_has_no_lines_and_no_thread(monkeypatch):
    monkeypatch.setattr(shown, "PLAIN_EVERY_S", 0.0)
    said, before = io.StringIO(), threading.active_count()
    with Progress(Console(file=said, quiet=True)).stage("train", 9) as advance:
        advance(1, "")
        assert threading.active_count() == before
    assert said.getvalue() == ""


def test_a_terminal_has_bars_with_the_time_left():
    said, clock = io.StringIO(), Clock()
    console = Console(file=said, force_terminal=True, width=200)
    progress = Progress(console, clock)
    with progress.stage("outer", 2) as outer:
        with progress.stage("inner", 30) as advance:
            for step in (1, 2, 3):
                clock.now += 10.0
                advance(step, "loss 0.5")
        outer(1, "")
    printed = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", said.getvalue())
    assert "outer" in printed and "done in" not in printed


def test_rows_are_counted_and_never_more_than_there_are(plain):
    progress, clock, lines = plain

    class Batch:
        index = range(8)

    with progress.stage("evaluate", 20) as advance:
        score = counting(lambda batch: len(batch.index), counter(advance))
        for _ in range(2):
            clock.now += 5.0
            assert score(Batch) == 8
        progress.tick()
        score(Batch)
        progress.tick()
    assert lines()[:2] == ["evaluate: 16/20, 2 s left", "evaluate: 20/20, 0 s left"]
