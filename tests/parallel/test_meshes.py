"""The same losses and the same first answers on any mesh, for every stage of a run."""

import functools
from pathlib import Path

import numpy as np
import pytest
from on_mesh import OnMesh, far_apart

from dareu_jax.config import load_config

pytestmark = pytest.mark.slow

REPO = Path(__file__).resolve().parents[2]
MESHES = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    cfg = load_config(REPO / "tests" / "tiny.yaml", ["prior.epochs=4"])

    @functools.cache
    def on(sizes):
        return OnMesh(cfg, tmp_path_factory.mktemp("run"), sizes)

    return on


@pytest.mark.parametrize("sizes", MESHES)
def test_losses_are_those_of_one_device(seen, sizes):
    found, wanted = seen(sizes).losses, seen((1, 1, 1)).losses
    assert found.keys() == wanted.keys()
    gaps = far_apart(found, wanted)
    assert not {key: gap for key, gap in gaps.items() if gap > 1e-4}


@pytest.mark.parametrize("sizes", MESHES)
def test_the_first_answers_are_those_of_one_device(seen, sizes):
    np.testing.assert_array_equal(seen(sizes).tokens, seen((1, 1, 1)).tokens)
