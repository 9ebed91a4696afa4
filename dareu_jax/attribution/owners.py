"""Owners come and go: indices merged, cut and extended without a rebuild."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dareu_jax.attribution.kernel import Index, Kernel, OwnerBatch

Array = jax.Array


def axes_of(kernel: Kernel, index: Index) -> Any:
    """The axis over owners of every leaf; raises ValueError where there is none."""
    if kernel.owner_axes is None:
        raise ValueError(f"an index of {kernel.name} cannot be changed; build it again")
    return kernel.owner_axes(index)


def merge(kernel: Kernel, a: Index, b: Index) -> Index:
    """The index of the records of both; what owners share is taken from ``a``.

    Raises:
      ValueError: the kernel's indices do not add up.
    """

    def add(axis: int, x: Array, y: Array) -> Array:
        return x if axis < 0 else x + y

    return jax.tree.map(add, axes_of(kernel, a), a, b)


def select(kernel: Kernel, index: Index, columns: Sequence[int]) -> Index:
    """The index of the owners in ``columns``, in that order; -1 is a new, empty one.

    Raises:
      ValueError: the kernel's indices do not add up.
    """
    rows = jnp.asarray(columns, jnp.int32)

    def keep(axis: int, x: Array) -> Array:
        if axis < 0:
            return x
        taken = jnp.take(x, jnp.maximum(rows, 0), axis=axis)
        known = (rows >= 0).reshape(-1, *[1] * (x.ndim - axis - 1))
        return jnp.where(known, taken, jnp.zeros_like(taken))

    return jax.tree.map(keep, axes_of(kernel, index), index)


def extend(
    kernel: Kernel, params: Any, index: Index, batches: Sequence[OwnerBatch]
) -> Index:
    """The index with more records in it; what owners share stays as it was fitted.

    Raises:
      ValueError: the kernel's indices do not add up.
    """

    def empty(axis: int, x: Array) -> Array:
        return x if axis < 0 else jnp.zeros_like(x)

    more = jax.tree.map(empty, axes_of(kernel, index), index)
    for batch in batches:
        more, _ = kernel.update(params, batch, more)
    return merge(kernel, index, kernel.finalize(params, more))
