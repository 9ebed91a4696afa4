"""Two layouts of the same devices: one to update parameters in, one to sample in."""

import contextlib
import dataclasses
import math
from typing import Any, TypeVar

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from dareu_jax.errors import UserError
from dareu_jax.parallel.mesh import AXES, batch_sharding
from dareu_jax.parallel.rules import shardings_for

M = TypeVar("M", Mesh, AbstractMesh)


def rollout_mesh(mesh: M, kv_heads: int, tensor: int | None = None) -> M:
    """Return ``mesh`` with its devices as ``data x 1 x tensor``, in the same order.

    A layer is split over ``tensor`` devices; None: over as many of ``fsdp x tensor`` as
    the ``kv_heads`` divide by, so that each has keys of its own.
    """
    sizes = mesh.shape
    if tensor is None:
        tensor = math.gcd(sizes["fsdp"] * sizes["tensor"], kv_heads)
    if mesh.size % tensor:
        raise UserError(
            f"mesh.rollout_tensor = {tensor} must divide the {mesh.size} devices"
        )
    shape = (mesh.size // tensor, 1, tensor)
    if shape == tuple(sizes[axis] for axis in AXES):
        return mesh
    if isinstance(mesh, AbstractMesh):
        return AbstractMesh(shape, AXES, axis_types=mesh.axis_types)
    return Mesh(mesh.devices.reshape(shape), AXES, axis_types=mesh.axis_types)


@dataclasses.dataclass(frozen=True)
class Layouts:
    """Where parameters and rows are in an update, and where while text is sampled.

    An update gathers what ``fsdp`` splits once per batch; sampling would do so once per
    token. There the devices split heads, ffn and vocabulary instead, and what they
    exchange is activations of one token. Without meshes all stays where it is.
    """

    update: Mesh | None = None
    rollout: Mesh | None = None

    @classmethod
    def of(cls, mesh: Mesh, kv_heads: int, tensor: int | None = None) -> "Layouts":
        """Both layouts of the devices of ``mesh``; the rest as in `rollout_mesh`."""
        return cls(mesh, rollout_mesh(mesh, kv_heads, tensor))

    def sampling(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which text is sampled."""
        if self.rollout is None:
            return contextlib.nullcontext()
        return jax.set_mesh(self.rollout)

    def params(self, params: Any) -> Any:
        """Parameters of the update layout, in the rollout layout."""
        if self.rollout is None or self.rollout == self.update:
            return params
        return jax.device_put(params, shardings_for(params, self.rollout))

    def rows(self, tree: Any) -> Any:
        """Return arrays ``[B, ...]`` in the rollout layout, if B can be split so."""
        if self.rollout is None or self.rollout == self.update:
            return tree
        for leaf in jax.tree.leaves(tree):
            self.check(len(leaf))
        return jax.device_put(tree, batch_sharding(self.rollout))

    def check(self, batch: int) -> None:
        """Raises `UserError` when a rollout cannot split ``batch`` rows."""
        parts = 1 if self.rollout is None else self.rollout.shape["data"]
        if batch % parts:
            raise UserError(
                f"batch {batch} must divide by {parts}, the parts of a rollout; "
                "change it, or mesh.rollout_tensor"
            )

    def key(self, key: jax.Array) -> jax.Array:
        """A random key of the update layout, in the rollout layout."""
        if self.rollout is None or self.rollout == self.update or not key.committed:
            return key
        whole = NamedSharding(self.rollout, PartitionSpec())
        # Between processes, device_put takes the numbers of a key and not the key.
        numbers = jax.device_put(jax.random.key_data(key), whole)
        return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(key))

    def back(self, tree: Any) -> Any:
        """Arrays ``[B, ...]`` of the rollout layout, in the update layout."""
        if self.update is None or self.rollout == self.update:
            return tree
        return jax.device_put(tree, batch_sharding(self.update))
