"""The interface of an attribution kernel: pure functions in a frozen dataclass."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dareu_jax.corpus.batches import TokenBatch

Array = jax.Array
Index = Any
Accumulator = Any


class OwnerBatch(NamedTuple):
    """Training text with its owners: what an index is built from.

    Attributes:
      text: `TokenBatch` of B records.
      owner: ``[B]`` int32 column of the owner, -1 = nobody's.
    """

    text: TokenBatch
    owner: Array


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Whose data does a response come from? Scores ``[B, O]``, higher = more.

    ``params`` are those of the attributed language model; a kernel may ignore them.
    A kernel sees tokens and masks, never the owner of a query.

    Attributes:
      name: as registered.
      owners: O, the number of columns.
      init: ``(params, *, key) -> acc``.
      update: ``(params, batch: OwnerBatch, acc) -> (acc, metrics)``.
      finalize: ``(params, acc) -> index``.
      score: ``(params, index, queries: TokenBatch) -> [B, O]`` float32.
      prefix_score: ``(params, index, queries) -> [B, T, O]`` float32, or None.
    """

    name: str
    owners: int
    init: Callable[..., Accumulator]
    update: Callable[..., tuple[Accumulator, dict[str, Array]]]
    finalize: Callable[[Any, Accumulator], Index]
    score: Callable[[Any, Index, TokenBatch], Array]
    prefix_score: Callable[[Any, Index, TokenBatch], Array] | None = None


def build_index(
    kernel: Kernel, params: Any, batches: Iterable[OwnerBatch], *, key: Array
) -> Index:
    """Folds every owner batch into an index."""
    acc = kernel.init(params, key=key)
    for batch in batches:
        acc, _ = kernel.update(params, batch, acc)
    return kernel.finalize(params, acc)


def last_valid(x: Array, mask: Array) -> Array:
    """``x[b, t]`` at the last true entry t of ``mask [B, T]``, ``[B, ...]``."""
    last = jnp.maximum(jnp.sum(mask.astype(jnp.int32), axis=1) - 1, 0)
    at = last.reshape(-1, *[1] * (x.ndim - 1))
    return jnp.take_along_axis(x, at, axis=1)[:, 0]
