"""Every registered kernel on 8 devices: built, cut short, saved and scored there."""

import functools
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console

from dareu_jax.attribution import Kernel, OwnerBatch, build_index
from dareu_jax.attribution.gradients.bilinear import projected
from dareu_jax.attribution.index import Build, abstract_index
from dareu_jax.attribution.kernel import placed_index, shapes_on
from dareu_jax.parallel import Preemption, make_mesh, put_batch, shard
from dareu_jax.registry import KERNELS
from dareu_jax.storage.checkpoints import Checkpoints
from dareu_jax.training.loop import Stage
from dareu_jax.training.progress import Progress
from dareu_jax.training.throughput import Stopwatch
from dareu_jax.training.tracking import Tracker

pytestmark = pytest.mark.slow

KEY = jax.random.key(3)
MESHES = {"data": (8, 1, 1), "all": (2, 2, 2)}


class Cut(Exception):
    """A build is cut short."""


@functools.cache
def mesh_of(name: str) -> Any:
    """A mesh of all 8 devices."""
    return make_mesh(*MESHES[name])


def build_in(folder: Path, kernel: Kernel, batches: list, mesh: Any, stop=None):
    """A build that saves after every batch; the batch asked for ``stop``-th is none."""
    asked = iter(range(1000))

    def batch(step: int) -> OwnerBatch:
        if next(asked) == stop:
            raise Cut
        return batches[step]

    def where(number: int) -> Stage:
        return Stage(
            name=f"pass_{number}",
            seed=0,
            folder=folder / f"pass_{number}",
            keep=1,
            save_every=1 if stop else 100,
            log_every=100,
            tracker=Tracker(folder),
            progress=Progress(Console(file=StringIO())),
            headline="loss",
            remedy="",
            preemption=Preemption(),
            watch=Stopwatch(),
        )

    return Build(
        kernel=kernel,
        key=KEY,
        batch=batch,
        steps=len(batches),
        mesh=mesh,
        where=where,
        folder=folder / "index",
    )


class Placed(NamedTuple):
    """A kernel on a mesh, with what it was built from there."""

    kernel: Kernel
    params: Any
    index: Any
    score: Callable[..., Any]
    queries: Any

    def scores(self, index: Any) -> np.ndarray:
        """Scores of the queries by an index of this mesh."""
        return np.asarray(self.score(self.params, index, self.queries))


def bits(x: Any) -> np.ndarray:
    """An array or a key as numbers."""
    is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if is_key else x)


def assert_same_bits(a: Any, b: Any) -> None:
    """Two trees hold the same numbers, wherever they are."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(bits(x), bits(y))


def on_mesh(name: str, world: Any, mesh: Any, folder: Path) -> Placed:
    """The kernel's index built on the mesh, and put where the sharding rules say."""
    put = functools.partial(shard, mesh=mesh)
    kernel, params = world.kernel(name, place=put), put(world.params)
    with jax.set_mesh(mesh):
        build = build_in(folder, kernel, world.passes(kernel), mesh)
        index = placed_index(kernel, build.index(params), mesh)
    score = jax.jit(kernel.score)
    return Placed(kernel, params, index, score, put_batch(world.queries, mesh))


@pytest.fixture(scope="module", params=KERNELS.names())
def alone(request, world) -> tuple[str, np.ndarray]:
    """A kernel's scores on one device."""
    kernel = world.kernel(request.param)
    index = build_index(kernel, world.params, world.passes(kernel), key=KEY)
    score = jax.jit(kernel.score)
    return request.param, np.asarray(score(world.params, index, world.queries))


@pytest.fixture(scope="module")
def meshed(alone, world, tmp_path_factory):
    """The kernel on a mesh, built once."""

    @functools.cache
    def there(name: str) -> Placed:
        folder = tmp_path_factory.mktemp("build")
        return on_mesh(alone[0], world, mesh_of(name), folder)

    return there


def assert_near(found, wanted):
    """Within 1e-5 of the largest score."""
    size = abs(wanted).max()
    np.testing.assert_allclose(found, wanted, atol=1e-5 * size, rtol=0)


@pytest.mark.parametrize("name", MESHES)
def test_eight_devices_build_and_score_as_one(alone, meshed, name):
    there = meshed(name)
    assert all(len(x.sharding.device_set) == 8 for x in jax.tree.leaves(there.index))
    assert_near(there.scores(there.index), alone[1])


def test_an_index_of_a_row_of_devices_scores_on_a_cube_of_them(meshed, tmp_path):
    here, there = meshed("data"), meshed("all")
    with Checkpoints(tmp_path) as saved:
        saved.save(0, here.index, {})
        shapes = abstract_index(there.kernel, there.params)
        wanted = shapes_on(there.kernel, shapes, mesh_of("all"))
        _, index, _ = saved.latest(wanted)
    wanted = jax.tree.map(lambda x: x.sharding, there.index)
    assert jax.tree.map(lambda x: x.sharding, index) == wanted
    assert_same_bits(index, here.index)
    assert_near(there.scores(index), here.scores(here.index))


def test_a_build_cut_short_goes_on_to_the_same_bits(meshed, world, tmp_path):
    here, mesh = meshed("data"), mesh_of("data")
    batches = world.passes(here.kernel)
    last = len(batches) * here.kernel.passes - 1
    with jax.set_mesh(mesh):
        with pytest.raises(Cut):
            build_in(tmp_path, here.kernel, batches, mesh, last).index(here.params)
        index = build_in(tmp_path, here.kernel, batches, mesh).index(here.params)
    assert_same_bits(index, here.index)


@pytest.mark.parametrize("name", MESHES)
def test_one_seed_gives_one_projection_on_any_mesh(name):
    matrices = {"up": jnp.zeros((2, 16, 32))}

    def made(seed):
        return projected(8).held(matrices, seed)["up"]

    split = NamedSharding(
        mesh_of(name), PartitionSpec(None, ("data", "fsdp"), "tensor")
    )
    for here, there in zip(
        jax.jit(made)(jnp.uint32(5)),
        jax.jit(made, out_shardings=split)(jnp.uint32(5)),
        strict=True,
    ):
        assert len(there.sharding.device_set) == 8
        np.testing.assert_array_equal(there, here)
