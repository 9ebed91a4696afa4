"""The interface of an attribution kernel: pure functions in a frozen dataclass."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dareu_jax.config import AttributionConfig, ClassifierConfig
from dareu_jax.corpus.batches import Rows, TokenBatch
from dareu_jax.models import Decoder
from dareu_jax.parallel import shard, shardings_for

Array = jax.Array
Index = Any
Accumulator = Any


class OwnerBatch(NamedTuple):
    """Training text with its owners: what an index is built from.

    Attributes:
      text: `TokenBatch` of B records.
      owner: ``[B]`` int32 column of the owner, -1 = nobody's; or ``[B, O]`` float32
        weights, for records of several owners.
    """

    text: TokenBatch
    owner: Rows


def as_is(params: Any, acc: Accumulator, number: int = 0) -> Index:
    """The accumulator is the index, or what the next pass goes on with."""
    return acc


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
      score: ``(params, index, queries: TokenBatch) -> [B, O]`` float32.
      finalize: ``(params, acc) -> index``.
      prefix_score: ``(params, index, queries) -> [B, T, O]`` float32, or None.
      passes: times that `update` sees every record.
      advance: ``(params, acc, number) -> acc``, before pass ``number`` from 1 on.
      owner_axes: ``index -> tree`` with the axis of each leaf that runs over owners
        and along which records add up, -1 for what all owners share; None where the
        index of some owners says nothing about another's.
      fold: ``(params, index, weights [O], queries) -> [B]``, the sum over owners of
        weight times score at less than the price of the scores, or None.
      is_fitted: whether it is trained over many epochs; else each pass sees every
        record exactly once.
      is_probability: whether scores are in [0, 1] as they are.
      names_copies: whether a copy of an owner's record scores that owner first.
      follows_model: whether it looks at the model through ``params``, so that it goes
        stale while the model is trained.
      is_gram: whether a score by one record is an inner product of the same features
        of query and record, so that records score each other alike, themselves above 0.
      goes_on: whether `init` begins with trained parameters that it holds.
      is_control: whether it is there to be beaten.
    """

    name: str
    owners: int
    init: Callable[..., Accumulator]
    update: Callable[..., tuple[Accumulator, dict[str, Array]]]
    score: Callable[[Any, Index, TokenBatch], Array]
    finalize: Callable[[Any, Accumulator], Index] = as_is
    prefix_score: Callable[[Any, Index, TokenBatch], Array] | None = None
    passes: int = 1
    advance: Callable[[Any, Accumulator, int], Accumulator] = as_is
    owner_axes: Callable[[Index], Any] | None = None
    fold: Callable[[Any, Index, Array, TokenBatch], Array] | None = None
    is_fitted: bool = False
    is_probability: bool = False
    names_copies: bool = True
    follows_model: bool = False
    is_gram: bool = False
    goes_on: bool = False
    is_control: bool = False


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a kernel is made from; each reads what concerns it.

    Attributes:
      model: the attributed decoder; owners: O.
      cfg: options of the kernels without training.
      classifier: those of the classifier; steps: its updates in all.
      backbone: the classifier's decoder; start: gives its parameters, of which
        adapters alone are trained where there are any; None: fresh ones.
      snapshots: gives checkpoints of the model's training, oldest first, as
        ``(parameters, learning rates summed since the one before)``.
    """

    model: Decoder
    owners: int
    cfg: AttributionConfig
    classifier: ClassifierConfig
    steps: int
    backbone: Decoder
    start: Callable[[], Any] = lambda: None
    snapshots: Callable[[], Sequence[tuple[Any, float]]] = tuple


def build_index(
    kernel: Kernel,
    params: Any,
    batches: Iterable[OwnerBatch],
    *,
    key: Array,
    init: Callable[..., Accumulator] | None = None,
) -> Index:
    """Folds every owner batch into an index, in as many passes as the kernel takes.

    Args:
      batches: gone over once for each pass, so no iterator.
      init: makes the first accumulator where it is to live; None: `Kernel.init`.
    """
    acc = (init or kernel.init)(params, key=key)
    for number in range(kernel.passes):
        acc = kernel.advance(params, acc, number) if number else acc
        for batch in batches:
            acc, _ = kernel.update(params, batch, acc)
    return kernel.finalize(params, acc)


def init_on(kernel: Kernel, mesh: Mesh, params: Any, *, key: Array) -> Any:
    """``kernel.init(params, key=key)`` where the sharding rules want it.

    It is made there, so that no device ever holds all of it, unless the kernel goes
    on from parameters of its own.
    """
    if kernel.goes_on:
        return shard(kernel.init(params, key=key), mesh)
    return _init_on(kernel, mesh, params, key)


@functools.partial(jax.jit, static_argnames=("kernel", "mesh"))
def _init_on(kernel: Kernel, mesh: Mesh, params: Any, key: Array) -> Any:
    acc = kernel.init(params, key=key)
    return jax.lax.with_sharding_constraint(acc, shardings_for(acc, mesh))


def owner_weights(batch: OwnerBatch, owners: int) -> Array:
    """``[B, O]`` float32: 1 for the owner of a record, a row of 0 for nobody's.

    Weights, for records of several owners, stay what they are.
    """
    if batch.owner.ndim == 2:
        return jnp.asarray(batch.owner, jnp.float32)
    return jax.nn.one_hot(batch.owner, owners, dtype=jnp.float32)


def or_one(weight: Array) -> Array:
    """What sums are divided by for a mean: the weight of the records, 1 for none."""
    return jnp.where(weight > 0.0, weight, 1.0)


def from_prefixes(*, prefix_score: Callable[..., Array], **parts: Any) -> Kernel:
    """A kernel whose score of a response is that of its last prefix.

    Args:
      prefix_score, parts: see `Kernel`.
    """

    def score(params: Any, index: Index, queries: TokenBatch) -> Array:
        return last_valid(prefix_score(params, index, queries), queries.response_mask)

    return Kernel(score=score, prefix_score=prefix_score, **parts)


def running_mean(x: Array, mask: Array) -> Array:
    """Mean of ``x [B, T, ...]`` over the true entries of ``mask`` up to every t."""
    real = mask[..., None]
    total = jnp.cumsum(jnp.where(real, x, 0.0), axis=1)
    return total / jnp.maximum(jnp.cumsum(real.astype(jnp.float32), axis=1), 1.0)


def last_valid(x: Array, mask: Array) -> Array:
    """``x[b, t]`` at the last true entry t of ``mask [B, T]``, ``[B, ...]``."""
    last = jnp.maximum(jnp.sum(mask.astype(jnp.int32), axis=1) - 1, 0)
    at = last.reshape(-1, *[1] * (x.ndim - 1))
    return jnp.take_along_axis(x, at, axis=1)[:, 0]
