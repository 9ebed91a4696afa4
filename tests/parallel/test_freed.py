"""Memory that is free goes back to the system when the compiler is done."""

import jax
import pytest

from dareu_jax.parallel import freed


@pytest.fixture
def given_back(monkeypatch):
    """How often memory was given back."""
    calls = []
    monkeypatch.setattr(freed, "give_back", lambda: calls.append(1))
    freed.give_back_after_compiling()
    return calls


@pytest.mark.parametrize(
    ("event", "seconds", "times"),
    [(freed.COMPILED, 2.0, 1), (freed.COMPILED, 0.2, 0), ("/jax/other", 2.0, 0)],
)
def test_a_long_compilation_is_followed_by_it_once(given_back, event, seconds, times):
    freed.give_back_after_compiling()  # a second command of one process
    jax.monitoring.record_event_duration_secs(event, seconds)
    assert len(given_back) == times


def test_jax_still_calls_the_end_of_a_compilation_so():
    heard = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: heard.append(event)
    )
    jax.jit(lambda x: x * 3.25 + 1.75).lower(1.0).compile()
    assert freed.COMPILED in heard
