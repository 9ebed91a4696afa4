"""Meshes and batches on 8 CPU devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from dareu_jax.errors import UserError
from dareu_jax.parallel import check_divisible, make_mesh, put_batch

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({}, (8, 1, 1)),
        ({"fsdp": 4}, (2, 4, 1)),
        ({"data": 1, "fsdp": -1, "tensor": 2}, (1, 4, 2)),
        ({"data": 2, "fsdp": 2, "tensor": 2}, (2, 2, 2)),
    ],
)
def test_minus_one_is_the_rest(sizes, shape):
    mesh = make_mesh(**sizes)
    assert dict(mesh.shape) == dict(zip(("data", "fsdp", "tensor"), shape))
    assert mesh.axis_types == (AxisType.Auto,) * 3


def test_a_mesh_of_some_devices():
    assert make_mesh(devices=jax.devices()[:2]).size == 2


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 3}, "data=3 x fsdp=1 x tensor=1 needs 3 devices, 8 are there"),
        ({"fsdp": 3}, "data=-1 x fsdp=3 x tensor=1 needs a multiple of 3 devices, 8"),
        ({"fsdp": 16}, "needs a multiple of 16 devices, 8 are there"),
        ({"fsdp": -1}, "at most one is -1"),
        ({"data": 0}, "sizes are at least 1"),
        ({"data": -8}, "sizes are at least 1"),
    ],
)
def test_sizes_that_do_not_fit(sizes, message):
    with pytest.raises(UserError, match=message):
        make_mesh(**sizes)


def test_put_batch_splits_rows():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    batch = {"tokens": np.arange(24).reshape(8, 3), "owner": np.arange(8)}
    placed = put_batch(batch, mesh)
    assert placed["tokens"].addressable_shards[0].data.shape == (2, 3)
    assert placed["owner"].addressable_shards[0].data.shape == (2,)
    np.testing.assert_array_equal(placed["tokens"], batch["tokens"])


def test_put_batch_takes_arrays_already_on_a_device():
    placed = put_batch(jnp.ones((8, 2)), make_mesh())
    assert placed.addressable_shards[0].data.shape == (1, 2)


def test_an_indivisible_batch_shows_the_arithmetic():
    mesh = make_mesh(data=4, fsdp=2)
    message = r"batch 12 must divide by 8 devices \(data 4 x fsdp 2\)"
    with pytest.raises(UserError, match=message):
        check_divisible(12, mesh)
    with pytest.raises(UserError, match=message):
        put_batch(np.zeros((12, 2)), mesh)
