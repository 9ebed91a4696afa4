"""Compiled programs that a folder carries."""

import jax
import numpy as np
import pytest

from dareu_jax.storage.programs import programs_in

FOLDER = "jax_compilation_cache_dir"


def doubled(x):
    return 2.0 * x


@pytest.fixture
def found():
    """How many programs were found compiled, so far."""
    seen = []

    def heard(event, **rest):
        if event == "/jax/compilation_cache/cache_hits":
            seen.append(event)

    jax.monitoring.register_event_listener(heard)
    yield lambda: len(seen)
    jax.monitoring.unregister_event_listener(heard)


def test_a_folder_carries_programs_to_the_next_process(tmp_path, found):
    before, x = jax.config.values[FOLDER], np.ones(3, np.float32)
    for number in (0, 1):
        with programs_in(tmp_path / "programs"):
            np.testing.assert_array_equal(jax.jit(doubled)(x), [2.0] * 3)
        assert found() == number
        jax.clear_caches()  # as a new process begins
    assert any((tmp_path / "programs").iterdir())
    assert jax.config.values[FOLDER] == before


def test_without_a_folder_they_stay_where_they_were(tmp_path):
    before = jax.config.values[FOLDER]
    with programs_in(None):
        assert jax.config.values[FOLDER] == before


def test_the_old_place_is_back_after_an_error(tmp_path):
    before = jax.config.values[FOLDER]
    with pytest.raises(ValueError), programs_in(tmp_path):
        raise ValueError
    assert jax.config.values[FOLDER] == before
