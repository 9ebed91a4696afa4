"""Score single records, each as if it were an owner."""

import functools
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from dareu_jax import data
from dareu_jax.attribution.kernel import Kernel, OwnerBatch
from dareu_jax.attribution.owners import columns_of, filled
from dareu_jax.parallel import named_leaves

if TYPE_CHECKING:
    from dareu_jax.attribution.attributor import Attributor


BLOCK_BYTES = 2**28
"""Memory that the records of one block may take while they are scored."""


def single_scores(
    made: "Attributor", asked: data.TokenBatch, rows: np.ndarray
) -> np.ndarray:
    """Return scores ``[Q, R]`` of the records in ``rows [R]``, some at a time.

    A kernel on text or hidden states sees all records at once, for its scores of one
    owner may depend on the others'; gradients are compared one by one.
    """
    together = made.kernel.prefix_score is not None
    places = np.arange(len(made.records)) if together else rows
    size = len(places) if together else min(block_of(made), len(places))
    kernel = made.kernel_of(size)
    empty = columns_of(made.kernel, made.index, (-1,) * size, made.model.mesh)
    tokens, score = made.tokens(made.records), jax.jit(kernel.score)
    parts = []
    for begin in range(0, len(places), size):
        block = data.take(tokens, places[begin : begin + size])
        index = index_of(made, kernel, empty, block)
        own = functools.partial(score, made.model.params, index)
        part = made.model.over(asked, made.options.batch_size, own)
        parts.append(part[:, : len(block.index)])
    scores = np.concatenate(parts, axis=1)
    return scores[:, rows] if together else scores


def block_of(made: "Attributor") -> int:
    """Return how many records' parts of an index fit in `BLOCK_BYTES`, at least 1."""
    held = sum(x.nbytes for _, x in named_leaves(made.index))
    return max(1, BLOCK_BYTES * len(made.owners) // max(held, 1))


def index_of(
    made: "Attributor", kernel: Kernel, empty: Any, block: data.TokenBatch
) -> Any:
    """Return an index in which every record of ``block`` is an owner."""
    size = made.model.rows(made.options.batch_size)
    batches = [
        OwnerBatch(batch, columns(number * size, size, valid))
        for number, (batch, valid) in enumerate(data.sequential(block, size))
    ]
    with jax.set_mesh(made.model.mesh):
        placed = [made.model.place(batch) for batch in batches]
        return filled(kernel, made.model.params, empty, placed)


def columns(first: int, size: int, valid: int) -> np.ndarray:
    """Return columns ``[size]`` from ``first`` on for valid rows, -1 for the others."""
    own = np.arange(size, dtype=np.int32)
    return np.where(own < valid, own + np.int32(first), np.int32(-1))
