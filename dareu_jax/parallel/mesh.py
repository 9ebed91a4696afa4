"""The device mesh and batches on it: axes `data`, `fsdp` and `tensor`."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from dareu_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
AUTO = (AxisType.Auto,) * len(AXES)


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Return a mesh of all `devices`; one size may be -1, the rest of them."""
    devices = jax.devices() if devices is None else list(devices)
    sizes = _fill((data, fsdp, tensor), len(devices))
    return jax.make_mesh(sizes, AXES, axis_types=AUTO, devices=devices)


def abstract_mesh(data: int, fsdp: int, tensor: int, devices: int) -> AbstractMesh:
    """Return `make_mesh` of devices that are not there."""
    sizes = _fill((data, fsdp, tensor), devices)
    return AbstractMesh(sizes, AXES, axis_types=AUTO)


def _fill(sizes: tuple[int, ...], there: int) -> tuple[int, ...]:
    """Replaces the one -1 by what is left of `there` devices."""
    named = " x ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes))
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise UserError(f"mesh {named}: sizes are at least 1, and at most one is -1")
    given = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and there % given:
        raise UserError(
            f"mesh {named} needs a multiple of {given} devices, {there} are there"
        )
    if -1 not in sizes and given != there:
        raise UserError(f"mesh {named} needs {given} devices, {there} are there")
    return tuple(there // given if size == -1 else size for size in sizes)


def batch_devices(mesh: Mesh | AbstractMesh) -> int:
    """Return how many devices share the rows of a batch; 1 without a mesh."""
    sizes = dict(mesh.shape)
    return math.prod(sizes.get(axis, 1) for axis in BATCH_AXES)


def check_divisible(batch: int, mesh: Mesh | AbstractMesh) -> None:
    """Raise `UserError` when a global batch cannot be split over data and fsdp."""
    devices = batch_devices(mesh)
    if batch % devices:
        factors = " x ".join(f"{axis} {mesh.shape[axis]}" for axis in BATCH_AXES)
        raise UserError(f"batch {batch} must divide by {devices} devices ({factors})")


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of `[B, ...]`: B over data and fsdp, the rest whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def along_batch(x: jax.Array, or_whole: bool = False) -> jax.Array:
    """Keep ``x [B, ...]`` split along B on a mesh, so that parameters are gathered.

    Where that cannot be, it stays as it is, or every device has all (``or_whole``).
    """
    devices = batch_devices(jax.sharding.get_abstract_mesh())
    if devices == 1:
        return x
    if x.shape[0] % devices:
        return jax.lax.with_sharding_constraint(x, PartitionSpec()) if or_whole else x
    rest = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES, *rest))


def key_of(key: jax.Array, number: int) -> jax.Array:
    """Return `jax.random.fold_in` of a host's number, put on the key's devices."""
    if isinstance(key, jax.core.Tracer) or not key.committed:
        return jax.random.fold_in(key, jax.device_put(np.uint32(number)))
    return jax.random.fold_in(key, _put(np.uint32(number), key.sharding))


def _put(value: Any, to: jax.sharding.Sharding) -> jax.Array:
    """Puts what every process has on the devices; each process on its own."""
    if jax.process_count() == 1:
        return jax.device_put(value, to)
    whole = np.asarray(value)
    with jax.transfer_guard("allow"):  # JAX counts it among those nobody asked for
        return jax.make_array_from_callback(whole.shape, to, whole.__getitem__)


def put_batch(tree: Any, mesh: Mesh) -> Any:
    """Put host arrays `[B, ...]`, the same in every process, on the mesh by B."""
    sharding = batch_sharding(mesh)

    def put(leaf: Any) -> jax.Array:
        check_divisible(len(leaf), mesh)
        return _put(leaf, sharding)

    return jax.tree.map(put, tree)


def put_whole(tree: Any, mesh: Mesh | None) -> Any:
    """Put host arrays, the same in every process, whole on every device of a mesh.

    Without a mesh they go to the device that arrays go to by default.
    """
    if mesh is None:
        return jax.device_put(tree)
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: _put(leaf, everywhere), tree)
