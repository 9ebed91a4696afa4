"""Checkpoints: whole or not at all, whatever happens to the disk or the process."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dareu_jax import checkpoints
from dareu_jax.checkpoints import MANIFEST, Checkpoints, fingerprint
from dareu_jax.errors import TrainingError, UserError
from dareu_jax.parallel import make_mesh, shard, shardings_for

REPO = Path(__file__).resolve().parent.parent


def make_tree(seed=0, dim=8):
    key = jax.random.key(seed)
    params = {
        "embed": {"embedding": jax.random.normal(key, (16, dim))},
        "lm_head": {"kernel": jnp.full((dim, 16), seed, jnp.bfloat16)},
    }
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    state = optimiser.init(params)
    return {"params": params, "opt": state, "key": key, "step": jnp.int32(seed)}


def abstract(tree, mesh=None):
    shapes = jax.eval_shape(lambda: tree)
    if mesh is None:
        return shapes
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        shardings_for(shapes, mesh),
    )


@pytest.fixture
def stage(tmp_path):
    """A stage with steps 10, 20 and 30 on disk, and the warnings it gave."""
    said = []
    with Checkpoints(tmp_path / "stage", keep=3, warn=said.append) as stage:
        for step in (10, 20, 30):
            stage.save(step, make_tree(step), {"epoch": step})
        yield stage, said


def assert_step(found, step):
    assert found is not None and found[0] == step
    assert fingerprint(found[1]) == fingerprint(make_tree(step))
    assert found[2] == {"epoch": step}


def test_what_comes_back_is_what_went_in(tmp_path):
    tree, meta = make_tree(7), {"seed": 7, "best": None, "names": ["a"], "lr": 0.1}
    with Checkpoints(tmp_path / "a" / "b") as stage:
        assert stage.latest(abstract(tree)) is None
        stage.save(7, tree, meta)
    step, back, back_meta = Checkpoints(tmp_path / "a" / "b").latest(tree)
    assert (step, back_meta) == (7, meta)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    assert fingerprint(back) == fingerprint(tree)
    np.testing.assert_array_equal(
        jax.random.normal(back["key"], (3,)), jax.random.normal(tree["key"], (3,))
    )


@pytest.mark.parametrize("keep", [1, 2])
def test_only_the_newest_stay(tmp_path, keep):
    with Checkpoints(tmp_path, keep=keep) as stage:
        for step in (1, 2, 10, 11):
            stage.save(step, make_tree(step), {"epoch": step})
        assert stage.steps() == [1, 2, 10, 11][-keep:]
        assert_step(stage.latest(make_tree()), 11)


def test_keep_is_at_least_one(tmp_path):
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        Checkpoints(tmp_path, keep=0)


def test_saving_an_earlier_step_ends_the_abandoned_run(stage):
    stage, said = stage
    stage.save(20, make_tree(20), {"epoch": 20})
    assert stage.steps() == [10, 20]
    assert_step(stage.latest(make_tree()), 20)
    assert not said


def newest_data(folder: Path) -> Path:
    files = [path for path in folder.rglob("*") if path.parent.name == "d"]
    return max(files, key=lambda path: path.stat().st_size)


def truncate(folder):
    path = newest_data(folder)
    os.truncate(path, path.stat().st_size // 2)


def flip_a_byte(folder):
    path = newest_data(folder)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def delete_a_file(folder):
    newest_data(folder).unlink()


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def no_manifest(folder):
    (folder / MANIFEST).unlink()


def torn_manifest(folder):
    os.truncate(folder / MANIFEST, 40)


def manifest_of_another_kind(folder):
    (folder / MANIFEST).write_text('["not", "ours"]')


def changed_meta(folder):
    (folder / "meta" / "metadata").write_text('{"epoch": 31}')


DAMAGE = {
    truncate: "has changed since it was saved",
    flip_a_byte: "has changed since it was saved",
    delete_a_file: "is missing",
    empty: "its save did not finish",
    no_manifest: "its save did not finish",
    torn_manifest: "its manifest cannot be read",
    manifest_of_another_kind: "its manifest cannot be read",
    changed_meta: "meta/metadata has changed",
}


@pytest.mark.parametrize("fresh", [True, False], ids=["restarted", "running"])
@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_damaged_step_is_passed_over(stage, damage, fresh):
    stage, said = stage
    damage(stage.folder / "30")
    with Checkpoints(stage.folder, warn=said.append) if fresh else stage as reader:
        assert_step(reader.latest(make_tree()), 20)
        (line,) = said
        assert f"checkpoint {stage.folder} step 30 is unreadable (" in line
        assert DAMAGE[damage] in line and line.endswith("; using step 20 instead")
        reader.save(30, make_tree(30), {"epoch": 30})
        assert_step(reader.latest(make_tree()), 30)
        assert len(said) == 1


def test_all_damaged(stage):
    stage, said = stage
    for step, damage in zip((10, 20, 30), (empty, truncate, no_manifest)):
        damage(stage.folder / str(step))
    assert stage.latest(make_tree()) is None
    assert [line.split("; ")[1] for line in said] == ["starting from step 0"] * 3
    assert stage.steps() == []


def test_a_step_that_does_not_restore_is_passed_over_but_kept(stage, monkeypatch):
    stage, said = stage
    manager = stage._manager()
    restore = manager.restore

    def broken(step, **kwargs):
        if step == 30:
            raise ValueError("zarr says no\nand more")
        return restore(step, **kwargs)

    monkeypatch.setattr(manager, "restore", broken)
    assert_step(stage.latest(make_tree()), 20)
    assert "step 30 is unreadable (zarr says no); using step 20" in said[0]
    assert stage.steps() == [10, 20, 30]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t | {"step": jnp.zeros(3, jnp.int32)},
            r"step is int32\[\] there, i",
        ),
        (
            lambda t: t | {"step": jnp.float32(0)},
            r"int32\[\] there, float32\[\] wanted",
        ),
        (lambda t: t | {"new": jnp.float32(0)}, r"new is absent there, float32\[\]"),
        (lambda t: {"params": t["params"]}, "there, absent wanted"),
        (
            lambda t: t | {"params": make_tree(dim=4)["params"]},
            r"params/embed/embedding is float32\[16, 8\] there, float32\[16, 4\] want",
        ),
    ],
)
def test_another_configuration_names_the_leaf(stage, change, message):
    stage, said = stage
    with pytest.raises(UserError, match=message):
        stage.latest(change(make_tree()))
    assert not said and stage.steps() == [10, 20, 30]


def test_restore_on_another_mesh(tmp_path):
    tree = make_tree(3)
    there = shard(tree, make_mesh(data=8))
    with Checkpoints(tmp_path) as stage:
        stage.save(3, there, {})
        mesh = make_mesh(data=2, fsdp=2, tensor=2)
        _, back, _ = stage.latest(abstract(tree, mesh))
        _, alone, _ = stage.latest(abstract(tree))
    assert fingerprint(back) == fingerprint(alone) == fingerprint(tree)
    assert back["params"]["embed"]["embedding"].addressable_shards[0].data.shape == (
        8,
        4,
    )
    assert len(alone["step"].devices()) == 1


def test_leaves_without_a_sharding_join_the_mesh_of_the_others(tmp_path):
    tree = make_tree(1)
    mesh = make_mesh(data=2, fsdp=4)
    tree["params"] = shard(tree["params"], mesh)
    with Checkpoints(tmp_path) as stage:
        stage.save(1, tree, {})
        _, back, _ = stage.latest(tree)
    assert back["step"].sharding.mesh == mesh
    jax.jit(lambda t: t["params"]["embed"]["embedding"] * t["step"].astype(float))(back)


def disk_full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def disk_full_in_orbax(*args, **kwargs):
    raise ValueError("RESOURCE_EXHAUSTED: Failed writing: No space left on device")


@pytest.mark.parametrize("failure", [disk_full, disk_full_in_orbax])
@pytest.mark.parametrize("where", ["write", "wait", "manifest"])
def test_no_disk_space(stage, failure, where, monkeypatch):
    stage, said = stage
    with monkeypatch.context() as patch:
        if where == "manifest":
            patch.setattr(checkpoints, "_write_manifest", failure)
        else:
            name = {"write": "save", "wait": "wait_until_finished"}[where]
            patch.setattr(stage._manager(), name, failure)
        with pytest.raises(TrainingError) as error:
            stage.save(40, make_tree(40), {"epoch": 40})
    assert str(error.value) == (
        f"no disk space left while saving {stage.folder} step 40; "
        "free space and run the same command again"
    )
    assert_step(stage.latest(make_tree()), 30)
    assert not said
    stage.save(40, make_tree(40), {"epoch": 40})
    assert_step(stage.latest(make_tree()), 40)


def test_another_failure_is_not_called_a_full_disk(stage, monkeypatch):
    stage, _ = stage

    def broken(*args):
        raise RuntimeError("something else")

    monkeypatch.setattr(checkpoints, "_write_manifest", broken)
    with pytest.raises(RuntimeError, match="something else"):
        stage.save(40, make_tree(40), {})
    assert stage.steps() == [10, 20, 30]


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


def test_a_million_parameters_save_quickly(tmp_path):
    tree = {"w": jax.random.normal(jax.random.key(0), (1000, 1000))}
    with Checkpoints(tmp_path) as stage:
        seconds = []
        for step in range(4):
            start = time.perf_counter()
            stage.save(step, tree, {})
            seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5, seconds


SAVE_FOREVER = """
import sys
from pathlib import Path
import jax.numpy as jnp
from dareu_jax.checkpoints import Checkpoints

def tree(step):
    return {"w": jnp.full((256, 256), step, jnp.float32), "step": jnp.int32(step)}

with Checkpoints(Path(sys.argv[1])) as stage:
    found = stage.latest(tree(0))
    step = found[0] if found else 0
    if found:
        assert int(found[1]["step"]) == step == found[2]["step"], found
        assert bool((found[1]["w"] == step).all()), step
    print("resumed", step, flush=True)
    while True:
        step += 1
        stage.save(step, tree(step), {"step": step})
        print("saved", step, flush=True)
"""


def save_until_killed(folder: Path, after: float) -> tuple[int, int]:
    """Returns the step it resumed from and the last one it said was saved."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SAVE_FOREVER, str(folder)],
        cwd=REPO,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    first = process.stdout.readline().split()
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    rest, error = process.communicate(timeout=60)
    assert first, error
    said = [int(x.split()[1]) for x in rest.splitlines() if x.startswith("saved")]
    return int(first[1]), said[-1] if said else int(first[1])


def test_kill_at_any_moment(tmp_path):
    moments = random.Random(0)
    reached = 0
    for _ in range(4):
        resumed, last = save_until_killed(tmp_path, 0.3 + moments.random())
        assert resumed in (reached, reached + 1)
        reached = last
    assert reached > 0
    kept = [path for path in tmp_path.iterdir() if path.name.isdecimal()]
    assert len(kept) <= 3
