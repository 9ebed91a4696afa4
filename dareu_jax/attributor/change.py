"""Compiled changes of an index: other columns, more records, two indices as one.

Results are placed by the kernel's axes, as the index of a build is.
"""

from collections.abc import Iterable

import jax
from jax.sharding import Mesh

from dareu_jax.attribution import Kernel, OwnerBatch
from dareu_jax.attribution.kernel import Index, placed_index
from dareu_jax.attribution.owners import merge, select

_select = jax.jit(select, static_argnames=("kernel", "columns"))
_merge = jax.jit(merge, static_argnames="kernel")


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
