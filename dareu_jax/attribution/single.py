"""Score single records, each as if it were an owner."""

import functools
from collections.abc import Callable

import jax
import numpy as np

from dareu_jax import data
from dareu_jax.attribution.index import BatchesOf
from dareu_jax.attribution.kernel import Index, Kernel
from dareu_jax.attribution.owners import columns_of, filled
from dareu_jax.models.loaded import LoadedModel
from dareu_jax.parallel import named_leaves

BLOCK_BYTES = 2**28
"""Memory that the records of one block may take while they are scored."""


def single_scores(
    model: LoadedModel,
    kernel: Kernel,
    index: Index,
    *,
    kernel_of: Callable[[int], Kernel],
    tokens: data.TokenBatch,
    asked: data.TokenBatch,
    rows: np.ndarray,
    batch_size: int,
) -> np.ndarray:
    """Return scores ``[Q, R]`` of the records in ``rows [R]``, in blocks that fit.

    A kernel on text or hidden states sees all records at once, for its scores of one
    owner may depend on the others'; gradients are compared one by one.

    Args:
      kernel, index: of the owners; kernel_of: the same kernel for so many owners.
      tokens: N records, those of the index, of which ``rows`` are scored.
      asked: Q answers; batch_size: texts at a time.
    """
    together = kernel.prefix_score is not None
    places = np.arange(len(tokens.index)) if together else rows
    size = len(places) if together else min(block_of(kernel, index), len(places))
    single = kernel_of(size)
    empty = columns_of(kernel, index, (-1,) * size, model.mesh)
    score, parts = jax.jit(single.score), []
    for begin in range(0, len(places), size):
        block = data.take(tokens, places[begin : begin + size])
        held = index_of(model, single, empty, block, batch_size)
        own = functools.partial(score, model.params, held)
        parts.append(model.over(asked, batch_size, own)[:, : len(block.index)])
    scores = np.concatenate(parts, axis=1)
    return scores[:, rows] if together else scores


def block_of(kernel: Kernel, index: Index) -> int:
    """Return how many records' parts of an index fit in `BLOCK_BYTES`, at least 1."""
    held = sum(x.nbytes for _, x in named_leaves(index))
    return max(1, BLOCK_BYTES * kernel.owners // max(held, 1))


def index_of(
    model: LoadedModel,
    kernel: Kernel,
    empty: Index,
    block: data.TokenBatch,
    batch_size: int,
) -> Index:
    """Return an index in which every record of ``block`` is an owner."""
    stream = data.BatchStream(block, model.rows(batch_size), seed=0)
    owner = np.arange(len(block.index), dtype=np.int32)
    batches = BatchesOf(stream, owner, is_fitted=False, steps=0)
    with jax.set_mesh(model.mesh):
        return filled(kernel, model.params, empty, map(model.place, batches))
