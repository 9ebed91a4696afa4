"""What says that a saved step is whole, and how much it is worth."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.errors import UserError
from dareu_jax.parallel import make_mesh, shardings_for
from dareu_jax.storage.fingerprint import fingerprint
from dareu_jax.storage.integrity import (
    MANIFEST,
    check_leaves,
    describe,
    problem,
    read_manifest,
    read_metric,
    write_manifest,
)

TREE = {"w": jnp.zeros((2, 3)), "key": jax.random.key(0)}
LEAVES = {"key": [[], "key<fry>"], "w": [[2, 3], "float32"]}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "data").write_bytes(b"abc")
    return tmp_path


def test_a_manifest_holds_the_sha256_of_every_file(folder):
    write_manifest(folder, {"leaves": describe(TREE), "metric": 0.5})
    manifest = json.loads((folder / MANIFEST).read_text())
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert manifest == {"leaves": LEAVES, "metric": 0.5, "files": {"d/data": abc}}
    assert problem(folder) == "" and read_manifest(folder)["leaves"] == LEAVES
    assert {path.name for path in folder.iterdir()} == {"d", MANIFEST}


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_a_metric_that_is_no_number_is_none(folder, value):
    write_manifest(folder, {"leaves": LEAVES, "metric": value})
    assert read_metric(folder) is None and problem(folder) == ""


@pytest.mark.parametrize("text", [None, "", "[1]", '{"leaves": {}, "files": {}}'])
def test_a_step_without_a_metric_has_none(folder, text):
    if text is not None:
        (folder / MANIFEST).write_text(text)
    assert read_metric(folder) is None


def test_leaves_that_differ_are_named():
    check_leaves("here", LEAVES, TREE)
    with pytest.raises(UserError, match=r"here does .*: w is float32\[2, 3\] there"):
        check_leaves("here", LEAVES, TREE | {"w": jnp.zeros((3, 2))})


def test_fingerprint_sees_paths_dtypes_shapes_and_bytes():
    one = {"a": jnp.zeros((2, 3)), "key": jax.random.key(0)}
    others = [
        {"b": one["a"], "key": one["key"]},
        one | {"a": jnp.zeros((3, 2))},
        one | {"a": jnp.zeros((2, 3), jnp.int32)},
        one | {"a": one["a"].at[1, 2].set(1e-30)},
        one | {"key": jax.random.key(1)},
    ]
    assert len({fingerprint(tree) for tree in [one, *others]}) == 6
    assert fingerprint({"a": np.zeros((2, 3), np.float32)}) == fingerprint(
        {"a": jax.device_put(one["a"], shardings_for(jnp.float32(0), make_mesh()))}
    )
