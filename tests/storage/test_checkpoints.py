"""Checkpoints: whole or not at all, whatever happens to the disk or the process."""

import errno
import functools
import logging
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dareu_jax.errors import TrainingError, UserError
from dareu_jax.parallel import make_mesh, named_leaves, shard, shardings_for
from dareu_jax.storage import checkpoints, integrity
from dareu_jax.storage.checkpoints import Checkpoints
from dareu_jax.storage.fingerprint import fingerprint
from dareu_jax.storage.integrity import MANIFEST, problem, write_manifest

REPO = Path(__file__).resolve().parents[2]


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
        stage.settle()
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


def test_large_arrays_are_there_once_when_they_are_donated_after_a_save(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(checkpoints, "LARGE", 0)
    x = jax.random.normal(jax.random.key(0), (2**22,))
    place = x.unsafe_buffer_pointer()
    with Checkpoints(tmp_path) as stage:
        stage.save(1, {"x": x}, {})
        x = jax.jit(lambda x: x + 1.0, donate_argnums=0)(x)
        assert x.unsafe_buffer_pointer() == place


@pytest.mark.parametrize("keep", [1, 2])
def test_only_the_newest_stay(tmp_path, keep):
    with Checkpoints(tmp_path, keep=keep) as stage:
        for step in (1, 2, 10, 11):
            stage.save(step, make_tree(step), {"epoch": step})
        stage.settle()
        assert stage.steps() == [1, 2, 10, 11][-keep:]
        assert_step(stage.latest(make_tree()), 11)


def test_keep_is_at_least_one(tmp_path):
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        Checkpoints(tmp_path, keep=0)


def test_saving_an_earlier_step_ends_the_abandoned_run(stage):
    stage, said = stage
    stage.save(20, make_tree(20), {"epoch": 20})
    stage.settle()
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


MESHES = {
    1: {"data": 1},
    2: {"data": 1, "fsdp": 2},
    4: {"data": 1, "fsdp": 4},
    "4 in two axes": {"data": 2, "fsdp": 2},
    8: {"data": 2, "fsdp": 2, "tensor": 2},
}


def mesh_of(name):
    count = int(str(name)[0])
    return make_mesh(devices=jax.devices()[:count], **MESHES[name])


def with_value_head(seed):
    """A state with every kind of leaf that a method saves."""
    head = {"kernel": jax.random.normal(jax.random.key(seed + 1), (8, 1))}
    tree = make_tree(seed)
    return tree | {"params": tree["params"] | {"value_head": head}}


@pytest.mark.parametrize("to", [1, 2, 8])
@pytest.mark.parametrize("written_on", [4, "4 in two axes"])
def test_restore_on_another_mesh(tmp_path, written_on, to):
    tree = with_value_head(3)
    with Checkpoints(tmp_path) as stage:
        stage.save(3, shard(tree, mesh_of(written_on)), {})
        _, back, _ = stage.latest(abstract(tree, mesh_of(to)))
    before, after = named_leaves(tree), named_leaves(back)
    assert [path for path, _ in before] == [path for path, _ in after]
    for (path, one), (_, other) in zip(before, after):
        assert one.dtype == other.dtype and len(other.sharding.device_set) == to, path
    assert fingerprint(back) == fingerprint(tree)
    assert fingerprint(back["params"]["value_head"]) == fingerprint(
        tree["params"]["value_head"]
    )


def test_restore_without_a_mesh(tmp_path):
    tree = make_tree(3)
    with Checkpoints(tmp_path) as stage:
        stage.save(3, shard(tree, make_mesh(data=2, fsdp=2, tensor=2)), {})
        _, alone, _ = stage.latest(abstract(tree))
    assert fingerprint(alone) == fingerprint(tree)
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
            patch.setattr(integrity, "write_manifest", failure)
        else:
            name = {"write": "save", "wait": "wait_until_finished"}[where]
            patch.setattr(stage._manager(), name, failure)
        with pytest.raises(TrainingError) as error:
            stage.save(40, make_tree(40), {"epoch": 40})
            stage.settle()
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

    monkeypatch.setattr(integrity, "write_manifest", broken)
    stage.save(40, make_tree(40), {})
    with pytest.raises(RuntimeError, match="something else"):
        stage.settle()
    assert stage.steps() == [10, 20, 30]


def full_disk(stage, monkeypatch):
    """Begins a save of step 40 for which there is no space."""
    stage.settle()
    with monkeypatch.context() as patch:
        failed = threading.Event()

        def write(*args):
            failed.set()
            disk_full()

        patch.setattr(integrity, "write_manifest", write)
        stage.save(40, make_tree(40), {"epoch": 40})
        assert failed.wait(30)


@pytest.mark.parametrize("then", ["save", "latest", "close", "exit"])
def test_the_next_call_says_that_the_disk_was_full(tmp_path, monkeypatch, then):
    stage = Checkpoints(tmp_path)
    stage.save(30, make_tree(30), {"epoch": 30})
    full_disk(stage, monkeypatch)
    with pytest.raises(TrainingError, match=r"no disk space left .* step 40; free"):
        match then:
            case "save":
                stage.save(50, make_tree(50), {"epoch": 50})
            case "exit":
                with stage:
                    pass
            case _:
                getattr(stage, then)(*[make_tree()] * (then == "latest"))
    assert stage.steps() == [30]
    assert_step(stage.latest(make_tree()), 30)
    stage.close()


def test_a_failed_save_does_not_hide_another_error(tmp_path, monkeypatch):
    said = []
    with (
        pytest.raises(ZeroDivisionError),
        Checkpoints(tmp_path, warn=said.append) as stage,
    ):
        stage.save(30, make_tree(30), {"epoch": 30})
        full_disk(stage, monkeypatch)
        raise ZeroDivisionError
    (line,) = said
    assert line == (
        f"checkpoint {tmp_path} step 40 was not saved "
        "([Errno 28] No space left on device)"
    )
    assert_step(stage.latest(make_tree()), 30)


def test_an_error_waits_for_the_save_before_it(tmp_path):
    with pytest.raises(ZeroDivisionError), Checkpoints(tmp_path) as stage:
        stage.save(30, make_tree(30), {"epoch": 30})
        raise ZeroDivisionError
    assert_step(Checkpoints(tmp_path).latest(make_tree()), 30)


def test_orbax_prints_nothing_of_a_full_disk(tmp_path, monkeypatch, caplog, capfd):
    import orbax.checkpoint as ocp

    monkeypatch.setattr(
        ocp.AsyncCheckpointer, "_make_on_commit_callback", lambda *_: disk_full
    )
    with Checkpoints(tmp_path) as stage:
        stage.save(1, make_tree(1), {})
        with pytest.raises(TrainingError, match="no disk space left"):
            stage.settle()
    monkeypatch.undo()
    with Checkpoints(tmp_path) as stage:
        stage.save(1, make_tree(1), {"epoch": 1})
        assert_step(stage.latest(make_tree()), 1)
    assert not caplog.records and capfd.readouterr() == ("", "")


def test_a_save_becomes_valid_without_another_call(tmp_path):
    stage = Checkpoints(tmp_path)
    stage.save(1, make_tree(1), {"epoch": 1})
    end = time.monotonic() + 30
    while not (tmp_path / "1" / MANIFEST).exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert problem(tmp_path / "1") == ""
    stage.close()


def test_what_was_saved_is_what_was_there(tmp_path):
    """Arrays are donated and meta is changed as soon as `save` returns."""
    like = make_tree(0) | {"lm_head": {"kernel": jnp.zeros((64, 8192))}}
    tree = shard(like, make_mesh(data=2, fsdp=2, tensor=2))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, tree)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=shardings)
    def after(tree):
        def moved(leaf):
            if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                return jax.random.fold_in(leaf, 1)
            return leaf + jnp.ones((), leaf.dtype)

        return jax.tree.map(moved, tree)

    tree = after(tree)
    with Checkpoints(tmp_path, keep=20) as stage:
        for step in range(20):
            meta = {"step": step, "was": fingerprint(tree)}
            before = jax.tree.leaves(tree)
            stage.save(step, tree, meta)
            for _ in range(5):
                tree = after(tree)
            meta["was"] = "changed"
            assert all(leaf.is_deleted() for leaf in before if leaf.ndim)
        for step in range(20):
            _, back, meta = stage.at(step, abstract(like))
            assert meta == {"step": step, "was": fingerprint(back)}


def test_an_old_step_goes_only_when_the_next_is_whole(tmp_path, monkeypatch):
    write, may_write = write_manifest, threading.Event()

    def late(*args):
        assert may_write.wait(30)
        write(*args)

    with Checkpoints(tmp_path, keep=1) as stage:
        stage.save(1, make_tree(1), {"epoch": 1})
        stage.settle()
        monkeypatch.setattr(integrity, "write_manifest", late)
        stage.save(2, make_tree(2), {"epoch": 2})
        assert 1 in stage.steps() and problem(tmp_path / "1") == ""
        may_write.set()
        stage.settle()
        assert stage.steps() == [2]


WORTH = {1: 5.0, 2: 1.0, 3: 4.0, 4: 2.0, 5: 3.0, 6: 6.0}


@pytest.mark.parametrize(
    ("keep", "best", "stay"),
    [
        (1, 0, [6]),
        (2, 0, [5, 6]),
        (1, 1, [2, 6]),
        (1, 2, [2, 4, 6]),
        (2, 2, [2, 4, 5, 6]),
        (2, 3, [2, 4, 5, 6]),
        (1, 9, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_the_newest_and_the_best_stay(tmp_path, keep, best, stay):
    for step, worth in WORTH.items():  # each in a process of its own, as far as it goes
        with Checkpoints(tmp_path, keep, keep_best=best) as stage:
            stage.save(step, {"w": jnp.float32(worth)}, {}, worth)
        assert stage.steps()[-1] == step  # the newest is there, however bad
    assert stage.steps() == stay
    for step in stay:
        assert float(stage.at(step, {"w": jnp.float32(0)})[1]["w"]) == WORTH[step]
    stage.close()


def test_a_step_whose_metric_is_no_number_is_never_among_the_best(tmp_path):
    worths = [math.nan, 2.0, None, math.inf, 1.0, -math.inf, math.nan]
    with Checkpoints(tmp_path, keep=1, keep_best=2) as stage:
        for step, worth in enumerate(worths):
            stage.save(step, {"w": jnp.float32(0)}, {}, worth)
        stage.settle()
        assert stage.steps() == [1, 4, 6]


def test_a_step_without_metric_is_replaced_before_there_are_enough_good_ones(tmp_path):
    with Checkpoints(tmp_path, keep=1, keep_best=3) as stage:
        for step, worth in enumerate([None, 1.0, None]):
            stage.save(step, {"w": jnp.float32(0)}, {}, worth)
        stage.settle()
        assert stage.steps() == [1, 2]


def test_of_equally_good_steps_the_newer_stays(tmp_path):
    with Checkpoints(tmp_path, keep=1, keep_best=1) as stage:
        for step, worth in enumerate([1.0, 1.0, 2.0]):
            stage.save(step, {"w": jnp.float32(0)}, {}, worth)
        stage.settle()
        assert stage.steps() == [1, 2]


def test_one_step_of_several(stage):
    stage, said = stage
    assert_step(stage.at(20, make_tree()), 20)
    with pytest.raises(UserError, match=r"has no step 25; there are: 10, 20, 30$"):
        stage.at(25, make_tree())
    truncate(stage.folder / "20")
    with pytest.raises(UserError, match=r"step 20 is unreadable \(.*; take another st"):
        stage.at(20, make_tree())
    assert stage.steps() == [10, 20, 30] and not said


def test_hook_and_log_are_as_they_were(tmp_path):
    log = logging.getLogger("absl")
    before = sys.unraisablehook, list(log.filters)
    with Checkpoints(tmp_path / "a") as one, Checkpoints(tmp_path / "b") as other:
        for stage in (one, other):
            stage.save(1, make_tree(1), {"epoch": 1})
        log.warning("of others")
    assert (sys.unraisablehook, log.filters) == before


def test_a_million_parameters_save_quickly(tmp_path):
    tree = {"w": jax.random.normal(jax.random.key(0), (1000, 1000))}
    with Checkpoints(tmp_path) as stage:
        seconds = []
        for step in range(4):
            start = time.perf_counter()
            stage.save(step, tree, {})
            stage.settle()
            seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5, seconds


SAVE_FOREVER = """
import sys
from pathlib import Path
import jax.numpy as jnp
from dareu_jax.storage.checkpoints import Checkpoints

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
        print("saving", step, flush=True)
"""


def save_until_killed(folder: Path, after: float) -> tuple[int, int]:
    """Returns the step it resumed from and the last one it said it was saving."""
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
    said = [int(x.split()[1]) for x in rest.splitlines() if x.startswith("saving")]
    return int(first[1]), said[-1] if said else int(first[1])


@pytest.mark.slow
def test_kill_at_any_moment(tmp_path):
    moments = random.Random(0)
    reached = 0
    for _ in range(4):
        resumed, last = save_until_killed(tmp_path, 0.3 + moments.random())
        assert abs(resumed - reached) <= 1  # a save begins when the last has ended
        reached = last
    assert reached > 0
    kept = [path for path in tmp_path.iterdir() if path.name.isdecimal()]
    assert len(kept) <= 3


KILLED_WHILE_WRITING = """
import sys, time
from pathlib import Path
import jax.numpy as jnp
import orbax.checkpoint as ocp
from dareu_jax.storage import checkpoints, integrity
from dareu_jax.storage.checkpoints import Checkpoints

def never(*args):
    print("writing", flush=True)
    time.sleep(600)

def tree(step):
    return {"w": jnp.full((256, 256), step, jnp.float32)}

with Checkpoints(Path(sys.argv[1])) as stage:
    stage.save(1, tree(1), {})
    stage.settle()
    if sys.argv[2] == "manifest":
        integrity.write_manifest = never
    else:
        ocp.AsyncCheckpointer._make_on_commit_callback = lambda *_: never
    stage.save(2, tree(2), {})
    time.sleep(600)
"""


@pytest.mark.parametrize("what", ["arrays", "manifest"])
def test_killed_while_it_is_written(tmp_path, what):
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", KILLED_WHILE_WRITING, tmp_path, what],
        cwd=REPO,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "writing\n"
    process.kill()
    process.communicate(timeout=60)
    left = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert len(left) == 2 and "1" in left, left
    target, said = {"w": jnp.zeros((256, 256))}, []
    with Checkpoints(tmp_path, warn=said.append) as stage:
        step, back, _ = stage.latest(target)
        assert step == 1 and bool((back["w"] == 1).all())
        assert len(said) == (what == "manifest")
        stage.save(2, target, {})
        assert stage.latest(target)[0] == 2
