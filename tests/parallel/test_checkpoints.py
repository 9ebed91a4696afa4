"""Checkpoints that two processes write while they go on working."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.parallel import make_mesh, named_leaves, shardings_for
from dareu_jax.storage.checkpoints import Checkpoints
from dareu_jax.storage.integrity import problem

pytestmark = pytest.mark.slow

REPO = Path(__file__).resolve().parents[2]
STEPS = 6

WORKER = """
import functools, sys
from pathlib import Path
import jax

rank, port, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=rank)

from dareu_jax.storage.checkpoints import Checkpoints
from dareu_jax.parallel import init_sharded, make_mesh, on_host
sys.path.insert(0, str(folder))
from state import init, moved

mesh = make_mesh(data=2, fsdp=2)
state = init_sharded(init, mesh, jax.random.key(0))
shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
step_fn = jax.jit(moved, donate_argnums=0, out_shardings=shardings)
with Checkpoints(folder / "stage", keep=2, keep_best=1) as stage:
    for step in range(1, 7):
        state = step_fn(state)
        stage.save(step, state, {"step": step}, metric=float(abs(step - 3)))
        for number in range(3):  # others save while the first is written
            with Checkpoints(folder / "stage" / "others" / f"at_{step}") as other:
                other.save(number, state["params"], {})
assert stage.steps() == [3, 5, 6], stage.steps()
assert stage.latest(state)[0] == 6
stage.close()

try:
    with Checkpoints(folder / "ended") as ended:
        ended.save(1, state, {})
        raise ZeroDivisionError
except ZeroDivisionError:
    jax.distributed.shutdown()
"""

STATE = """
import jax
import jax.numpy as jnp
import optax

def init(key):
    params = {
        "embed": {"embedding": jax.random.normal(key, (16, 8))},
        "lm_head": {"kernel": jax.random.normal(key, (8, 16)).astype(jnp.bfloat16)},
        "value_head": {"kernel": jax.random.normal(key, (8, 1))},
    }
    optimiser = optax.adamw(1e-3).init(params)
    return {"params": params, "opt": optimiser, "key": key, "step": jnp.int32(0)}

def moved(state):
    def one(leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.fold_in(leaf, 1)
        return leaf + jnp.ones((), leaf.dtype)

    return jax.tree.map(one, state)
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory, two_processes):
    """What two processes with two devices each wrote, and the state they wrote."""
    folder = tmp_path_factory.mktemp("written")
    (folder / "state.py").write_text(STATE)
    two_processes(WORKER, folder, limit_s=240)
    made: dict = {}
    exec(STATE, made)
    states = [made["init"](jax.random.key(0))]
    for _ in range(STEPS):
        states.append(made["moved"](states[-1]))
    return folder, states


def numbers(leaf):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf.astype(jnp.float32) if leaf.dtype == jnp.bfloat16 else leaf)


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("step", [3, 5, 6])
def test_one_process_restores_what_two_wrote(written, step, devices):
    folder, states = written
    mesh = make_mesh(data=1, fsdp=devices, devices=jax.devices()[:devices])
    target = jax.tree.map(
        lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to),
        states[step],
        shardings_for(states[step], mesh),
    )
    with Checkpoints(folder / "stage") as stage:
        assert stage.steps() == [3, 5, 6]  # the best and the newest
        _, back, meta = stage.at(step, target)
    assert meta == {"step": step}
    assert jax.tree.structure(back) == jax.tree.structure(states[step])
    for (path, found), (_, wanted) in zip(
        named_leaves(back), named_leaves(states[step]), strict=True
    ):
        assert found.dtype == wanted.dtype, path
        assert len(found.sharding.device_set) == devices, path
        np.testing.assert_array_equal(numbers(found), numbers(wanted), err_msg=path)


def test_every_save_beside_another_is_whole(written):
    folder, _ = written
    others = sorted((folder / "stage" / "others").glob("at_*/*[0-9]"))
    assert len(others) == STEPS * 2  # the newest two of three
    assert [problem(path) for path in others] == [""] * len(others)


def test_an_error_in_both_waits_for_the_save_before_it(written):
    folder, _ = written
    assert problem(folder / "ended" / "1") == ""
