"""The gradient of a whole batch, a part of its rows at a time."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dareu_jax.data.batches import TokenBatch
from dareu_jax.models import DecoderConfig, parameters
from dareu_jax.parallel import along_batch

Array = jax.Array
LARGE = 50_000_000
"""Parameters of a decoder above which a CPU reads a batch in parts, unless told."""
SLOTS = 512
"""Tokens of such a part, at least: with fewer, the cores have too little to do."""
LossFn = Callable[..., tuple[Array, dict[str, Array]]]
"""``(params, rows) -> (loss, metrics)``, means; also by name a ``key``, if there is."""


def rows_at_once(given: int | None, cfg: DecoderConfig, batch: TokenBatch) -> int:
    """Return how many rows of a batch a gradient step reads at a time.

    That is as ``given``, or what of it divides the rows; None: all, but `rows_by_size`
    where one CPU has all of them.
    """
    rows = len(batch.index)
    if given is not None:
        return math.gcd(given, rows)
    is_shared = jax.sharding.get_abstract_mesh().size > 1
    if is_shared or jax.default_backend() != "cpu":
        return rows
    return rows_by_size(cfg, rows, batch.prompt.shape[1] + batch.response.shape[1])


def rows_by_size(cfg: DecoderConfig, rows: int, length: int) -> int:
    """Return the fewest rows, a divisor of ``rows``, that have `SLOTS` tokens.

    A CPU gains nothing from more, and keeps what each of them is read with. A decoder
    of at most `LARGE` parameters reads all ``rows`` of ``length`` tokens.
    """
    if parameters(cfg) <= LARGE:
        return rows
    divisors = (n for n in range(1, rows + 1) if rows % n == 0)
    return next((n for n in divisors if n * length >= SLOTS), rows)


def parts_of(batch: Any, count: int) -> Any:
    """Return arrays ``[B, ...]`` as ``[count, B / count, ...]``.

    A part has every ``count``-th row: where rows are split over devices, each device
    has its share of every part, and nothing moves.
    """

    def split(x: Array) -> Array:
        rows = along_batch(x.reshape(-1, count, *x.shape[1:]))
        return jnp.moveaxis(rows, 1, 0)

    return jax.tree.map(split, batch)


def after(done: Any, compute: Callable[[], Any]) -> Any:
    """Return ``compute()``, floats, for which ``done`` must be there: NaN if that is.

    Two gradients that do not depend on each other are else under way side by side, each
    with all that its forward pass keeps. XLA on CPU drops `optimization_barrier`, and
    allocates what a loop begins with at once, unless it is in a branch.
    """
    seen = [x[(0,) * x.ndim].astype(jnp.float32) for x in jax.tree.leaves(done)]
    shapes = jax.eval_shape(compute)

    def broken() -> Any:
        return jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), shapes)

    return jax.lax.cond(jnp.isnan(jnp.sum(jnp.stack(seen))), broken, compute)


def accumulated(
    loss_fn: LossFn,
    params: Any,
    batch: Any,
    *,
    size: int | None,
    weight: Callable[[Any], Array],
    key: Array | None = None,
) -> tuple[Any, dict[str, Array]]:
    """Return the gradient of a mean over a batch, and the metrics of the batch.

    The mean of the whole is ``sum_p w_p mean_p / sum_p w_p`` over its parts p: with
    tokens as weights it is that of all tokens, however they lie in the parts.

    Args:
      loss_fn: a `LossFn`; batch: a tree of arrays ``[B, ...]``.
      size: rows of a part, which divides B; None: all at once.
      weight: ``rows -> []``, how much the means of a part count: tokens or rows.
      key: of dropout, another one for each part; None: there is none.
    """
    slope = jax.grad(loss_fn, has_aux=True)
    rows = jax.tree.leaves(batch)[0].shape[0]
    if size is None or size == rows:
        return slope(params, batch, **({} if key is None else {"key": key}))
    parts = parts_of(batch, rows // size)
    weights = jax.vmap(lambda part: weight(part).astype(jnp.float32))(parts)
    shares = weights / jnp.maximum(jnp.sum(weights), 1.0)

    def of_part(part: Any, number: Array) -> Any:
        own = {} if key is None else {"key": jax.random.fold_in(key, number)}
        return slope(params, part, **own)

    def add(total: Any, given: tuple[Any, Array, Array]) -> tuple[Any, None]:
        part, share, number = given
        found = of_part(part, number)
        wide = jax.tree.map(lambda x: share * x.astype(jnp.float32), found)
        return jax.tree.map(jnp.add, total, wide), None

    numbers = jnp.arange(len(shares), dtype=jnp.uint32)
    first = jax.tree.map(lambda x: x[0], (parts, numbers))
    like = jax.eval_shape(of_part, *first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), like)
    return jax.lax.scan(add, zeros, (parts, shares, numbers))[0]
