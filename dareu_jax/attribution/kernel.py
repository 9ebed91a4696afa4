"""The interface of an attribution kernel: pure functions in a frozen dataclass."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dareu_jax.config import AttributionConfig, ClassifierConfig
from dareu_jax.data.batches import Rows, TokenBatch
from dareu_jax.models import Decoder
from dareu_jax.parallel import abstract_on, path_name, shard, table_axes
from dareu_jax.registry import KERNELS

T = TypeVar("T")
Array = jax.Array
Index = Any
Accumulator = Any
AxisNames = tuple[str, ...]
OWNERS = "owners"
"""The name of the axis that runs over owners."""


class OwnerBatch(NamedTuple):
    """Training text with its owners: what an index is built from.

    Attributes:
      text: `TokenBatch` of B records.
      owner: ``[B]`` int32 column of the owner, -1 = nobody's; or ``[B, O]`` float32
        weights, for records of several owners.
    """

    text: TokenBatch
    owner: Rows


def unmarked(text: TokenBatch) -> TokenBatch:
    """Return the text as it is: a kernel looks at all of it."""
    return text


def as_is(params: Any, acc: Accumulator, number: int = 0) -> Index:
    """Return the accumulator: it is the index, or the next pass begins with it."""
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
      branch_score: ``(params, index, queries, branches [B, T, A]) -> [B, T, A, O]``,
        `branches.branch_scores` in one pass, or None.
      passes: times that `update` sees every record.
      advance: ``(params, acc, number) -> acc``, before pass ``number`` from 1 on.
      axes: ``tree -> tree`` of axis names, for an index and for an accumulator: for
        every leaf a tuple such as ``("owners", "embed")``, or an empty tuple for an
        array that is replicated. An array without `OWNERS` is shared by all owners.
        None: every path is in the table of a model's parameters,
        `parallel.rules.LOGICAL_RULES`, and the index does not add up.
      adds_up: whether records add up along the axis of owners, so that owners can be
        added, removed and merged. False where the part of one owner depends on others.
      fold: ``(params, index, weights [O], queries) -> [B]``, the sum over owners of
        weight times score at less than the price of the scores, or None.
      differentiates: the number of a response whose gradients are compared, in words;
        None: no gradient is looked at.
      reads_snapshots: whether it needs checkpoints of the model's training.
      goes_on: ``() -> bool``, whether `init` begins with trained parameters that the
        kernel holds; it may read them.
      mark: ``TokenBatch -> TokenBatch`` with ``own``, before it looks at text; it may
        be called ahead, on the host: what is marked is not marked again.
      is_fitted: whether it is trained over many epochs; else each pass sees every
        record exactly once.
      is_probability: whether scores are in [0, 1] as they are.
      follows_model: whether it looks at the model through ``params``, so that it goes
        stale while the model is trained.
      is_control: whether it is there to be beaten.
      note: a sentence for the user on what it does by itself, or an empty one.
    """

    name: str
    owners: int
    init: Callable[..., Accumulator]
    update: Callable[..., tuple[Accumulator, dict[str, Array]]]
    score: Callable[[Any, Index, TokenBatch], Array]
    finalize: Callable[[Any, Accumulator], Index] = as_is
    prefix_score: Callable[[Any, Index, TokenBatch], Array] | None = None
    branch_score: Callable[[Any, Index, TokenBatch, Array], Array] | None = None
    passes: int = 1
    advance: Callable[[Any, Accumulator, int], Accumulator] = as_is
    axes: Callable[[Any], Any] | None = None
    adds_up: bool = True
    fold: Callable[[Any, Index, Array, TokenBatch], Array] | None = None
    differentiates: str | None = None
    reads_snapshots: bool = False
    goes_on: Callable[[], bool] = lambda: False
    mark: Callable[[TokenBatch], TokenBatch] = unmarked
    is_fitted: bool = False
    is_probability: bool = False
    follows_model: bool = False
    is_control: bool = False
    note: str = ""

    @property
    def is_additive(self) -> bool:
        """Whether owners can be added, removed and merged without a rebuild."""
        return self.axes is not None and self.adds_up


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a kernel is made from; each reads what concerns it.

    ``start`` and ``snapshots`` may train a model or read a large one. A kernel calls
    them when it is first built or used, never while it is made; see `read_once`.

    Attributes:
      model: the attributed decoder.
      owners: O.
      cfg: options that several kernels share, and a section for each kernel that has
        options of its own; see `options_of`.
      classifier: options of a kernel that is trained; steps: its updates in all.
      backbone: the decoder of such a kernel.
      start: returns the backbone's parameters, of which adapters alone are trained
        where there are any; None: fresh ones.
      snapshots: returns checkpoints of the model's training, oldest first, as
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


def options_of(setup: Setup, name: str) -> Any:
    """Return the section of kernel ``name`` in the configuration.

    Defaults, where the configuration was made before the kernel was registered.
    """
    return getattr(setup.cfg, name, None) or dict(KERNELS.options())[name]()


def read_once(read: Callable[[], T]) -> Callable[[], T]:
    """Return a function that calls ``read`` at its first call and keeps the result.

    It may be called while a program is traced: ``read`` is run, not traced.
    """

    @functools.cache
    def once() -> T:
        with jax.ensure_compile_time_eval():
            return read()

    return once


def axes_of(kernel: Kernel, tree: Any) -> Any:
    """Return the axis names of every leaf of an index or an accumulator."""
    return table_axes(tree) if kernel.axes is None else kernel.axes(tree)


def by_field(table: Mapping[str, AxisNames]) -> Callable[[Any], Any]:
    """Return `Kernel.axes` that finds the names of an array by a field of its path.

    An array of no field in the table is replicated.
    """

    def axes(tree: Any) -> Any:
        def names(path: Any, leaf: Any) -> AxisNames:
            fields = path_name(path).split("/")
            return next((table[field] for field in fields if field in table), ())

        return jax.tree_util.tree_map_with_path(names, tree)

    return axes


def placed_index(kernel: Kernel, index: Index, mesh: Mesh) -> Index:
    """Return an index, or an accumulator, where its axes put it on ``mesh``."""
    return shard(index, mesh, axes_of(kernel, index))


def shapes_on(kernel: Kernel, shapes: Any, mesh: Mesh) -> Any:
    """Return shapes of an index, or an accumulator, with their places on ``mesh``."""
    return abstract_on(shapes, mesh, axes_of(kernel, shapes))


def owner_weights(batch: OwnerBatch, owners: int) -> Array:
    """Return ``[B, O]`` float32: the batch's weights, or 1 for a record's owner."""
    if batch.owner.ndim == 2:
        return jnp.asarray(batch.owner, jnp.float32)
    return jax.nn.one_hot(batch.owner, owners, dtype=jnp.float32)


def or_one(weight: Array) -> Array:
    """Return the divisor of a mean: the weight of the records, 1 where that is 0."""
    return jnp.where(weight > 0.0, weight, 1.0)


def from_prefixes(*, prefix_score: Callable[..., Array], **parts: Any) -> Kernel:
    """Return a kernel whose score of a response is that of its last prefix."""

    def score(params: Any, index: Index, queries: TokenBatch) -> Array:
        return last_valid(prefix_score(params, index, queries), queries.response_mask)

    return Kernel(score=score, prefix_score=prefix_score, **parts)


def running_mean(x: Array, mask: Array) -> Array:
    """Return the mean of ``x [B, T, ...]`` over entries of ``mask`` up to each t."""
    real = mask[..., None]
    total = jnp.cumsum(jnp.where(real, x, 0.0), axis=1)
    return total / jnp.maximum(jnp.cumsum(real.astype(jnp.float32), axis=1), 1.0)


def last_valid(x: Array, mask: Array) -> Array:
    """Return ``x[b, t]`` at the last true entry t of ``mask [B, T]``, ``[B, ...]``."""
    last = jnp.maximum(jnp.sum(mask.astype(jnp.int32), axis=1) - 1, 0)
    at = last.reshape(-1, *[1] * (x.ndim - 1))
    return jnp.take_along_axis(x, at, axis=1)[:, 0]


def is_owned(batch: OwnerBatch, owners: int) -> Array:
    """Return ``[B]`` float32: 1 for a record that somebody owns, else 0."""
    return (owner_weights(batch, owners).sum(axis=1) > 0.0).astype(jnp.float32)
