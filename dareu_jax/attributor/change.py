"""Compiled changes of an index: other columns, more records, two indices as one.

Results are placed by the kernel's axes, as the index of a build is.
"""

import functools
from collections.abc import Iterable

import jax
from jax.sharding import Mesh

from dareu_jax.attribution import Kernel, OwnerBatch
from dareu_jax.attribution.kernel import Index, placed_index
from dareu_jax.attribution.owners import merge, select


def columns_of(
    kernel: Kernel, index: Index, columns: tuple[int, ...], mesh: Mesh
) -> Index:
    """Return the index of the owners in ``columns``; -1 is a new, empty one."""
    return placed_index(kernel, _select(kernel, index, columns), mesh)


@functools.partial(jax.jit, static_argnames=("kernel", "columns"))
def _select(kernel: Kernel, index: Index, columns: tuple[int, ...]) -> Index:
    return select(kernel, index, columns)


def both(kernel: Kernel, a: Index, b: Index, mesh: Mesh) -> Index:
    """Return the index of both's records; what owners share is taken from ``a``."""
    there = placed_index(kernel, b, mesh)
    return placed_index(kernel, _merge(kernel, a, there), mesh)


@functools.partial(jax.jit, static_argnames="kernel")
def _merge(kernel: Kernel, a: Index, b: Index) -> Index:
    return merge(kernel, a, b)


def filled(
    kernel: Kernel, params: object, empty: Index, batches: Iterable[OwnerBatch]
) -> Index:
    """Return an index of the records alone; ``empty`` has what owners share."""
    for batch in batches:
        empty, _ = kernel.update(params, batch, empty)
    return kernel.finalize(params, empty)
