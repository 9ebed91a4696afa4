"""Change the owners of an index without a rebuild: merge, select, extend."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dareu_jax.attribution.kernel import OWNERS, Index, Kernel, OwnerBatch, placed_index

Array = jax.Array


def owner_axes(kernel: Kernel, index: Index) -> Any:
    """Return the axis over owners of every leaf, -1 for what all owners share.

    Raises:
      ValueError: the kernel's indices do not add up.
    """
    if kernel.axes is None or not kernel.adds_up:
        raise ValueError(f"an index of {kernel.name} cannot be changed; build it again")

    def axis(leaf: Any, names: tuple[str, ...]) -> int:
        return names.index(OWNERS) if OWNERS in names else -1

    return jax.tree.map(axis, index, kernel.axes(index))


def merge(kernel: Kernel, a: Index, b: Index) -> Index:
    """Return the index of the records of both; what owners share is taken from ``a``.

    Raises:
      ValueError: the kernel's indices do not add up, in all functions of this module.
    """

    def add(axis: int, x: Array, y: Array) -> Array:
        return x if axis < 0 else x + y

    return jax.tree.map(add, owner_axes(kernel, a), a, b)


def select(kernel: Kernel, index: Index, columns: Sequence[int]) -> Index:
    """Return the index of the owners in ``columns``, in that order; -1: a new one."""
    rows = jnp.asarray(columns, jnp.int32)

    def keep(axis: int, x: Array) -> Array:
        if axis < 0:
            return x
        taken = jnp.take(x, jnp.maximum(rows, 0), axis=axis)
        known = (rows >= 0).reshape(-1, *[1] * (x.ndim - axis - 1))
        return jnp.where(known, taken, jnp.zeros_like(taken))

    return jax.tree.map(keep, owner_axes(kernel, index), index)


def extend(
    kernel: Kernel, params: Any, index: Index, batches: Sequence[OwnerBatch]
) -> Index:
    """Return the index with more records in it; what owners share stays as it is."""
    empty = select(kernel, index, (-1,) * kernel.owners)
    return merge(kernel, index, filled(kernel, params, empty, batches))


def slice_of(kernel: Kernel, index: Index, start: int, count: int, mesh: Mesh) -> Index:
    """Return the index of ``count`` owners from column ``start`` on, on ``mesh``."""

    def cut(axis: int, x: Array) -> Array:
        return (
            x if axis < 0 else x[(slice(None),) * axis + (slice(start, start + count),)]
        )

    own = jax.tree.map(cut, owner_axes(kernel, index), index)
    return placed_index(kernel, own, mesh)


def columns_of(
    kernel: Kernel, index: Index, columns: tuple[int, ...], mesh: Mesh
) -> Index:
    """Return the index of the owners in ``columns``; -1 is a new, empty one."""
    return placed_index(kernel, _select(kernel, index, columns), mesh)


def both(kernel: Kernel, a: Index, b: Index, mesh: Mesh) -> Index:
    """Return the index of both's records; what owners share is taken from ``a``."""
    there = placed_index(kernel, b, mesh)
    return placed_index(kernel, _merge(kernel, a, there), mesh)


def filled(
    kernel: Kernel, params: object, empty: Index, batches: Iterable[OwnerBatch]
) -> Index:
    """Return an index of the records alone; ``empty`` has what owners share."""
    for batch in batches:
        empty, _ = kernel.update(params, batch, empty)
    return kernel.finalize(params, empty)


_select = jax.jit(select, static_argnames=("kernel", "columns"))
_merge = jax.jit(merge, static_argnames="kernel")
