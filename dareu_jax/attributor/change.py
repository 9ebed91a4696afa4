"""An index with other columns, with more records, and two indices as one; compiled.

Results live where the sharding rules say, as those of a build do.
"""

import functools
from collections.abc import Iterable

import jax
from jax.sharding import Mesh

from dareu_jax.attribution import Kernel, OwnerBatch
from dareu_jax.attribution.kernel import Index
from dareu_jax.attribution.owners import merge, select
from dareu_jax.parallel import shard


def columns_of(
    kernel: Kernel, index: Index, columns: tuple[int, ...], mesh: Mesh
) -> Index:
    """The index of the owners in ``columns``; -1 is a new, empty one."""
    return shard(_select(kernel, index, columns), mesh)


@functools.partial(jax.jit, static_argnames=("kernel", "columns"))
def _select(kernel: Kernel, index: Index, columns: tuple[int, ...]) -> Index:
    return select(kernel, index, columns)


def both(kernel: Kernel, a: Index, b: Index, mesh: Mesh) -> Index:
    """The index of the records of both; what owners share is taken from ``a``."""
    return shard(_merge(kernel, a, shard(b, mesh)), mesh)


@functools.partial(jax.jit, static_argnames="kernel")
def _merge(kernel: Kernel, a: Index, b: Index) -> Index:
    return merge(kernel, a, b)


def filled(
    kernel: Kernel, params: object, empty: Index, batches: Iterable[OwnerBatch]
) -> Index:
    """An index of the records alone; ``empty`` has what owners share."""
    for batch in batches:
        empty, _ = kernel.update(params, batch, empty)
    return kernel.finalize(params, empty)
