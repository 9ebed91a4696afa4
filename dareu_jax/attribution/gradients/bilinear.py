"""Bilinear kernels: <f(query), sum of f over the owner's records>, f of a gradient.

Kernels of this kind differ in the features f of a layer's per-example gradient, in the
measurement that is differentiated, and in what is done to the owners' sums.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dareu_jax.attribution.gradients import measures, probe
from dareu_jax.attribution.gradients.probe import Slot, attributed, over_rows
from dareu_jax.attribution.kernel import (
    OWNERS,
    Index,
    Kernel,
    OwnerBatch,
    Setup,
    by_field,
    or_one,
    owner_weights,
)
from dareu_jax.data.batches import TokenBatch
from dareu_jax.models import Decoder
from dareu_jax.parallel import named_leaves

Array = jax.Array
FLOOR = 1e-12
"""The least product of two norms that a cosine is divided by."""
MATRICES = ("layers", OWNERS, "gradient_in", "gradient_out")
"""Axes of a matrix of each owner, by layer."""
AXES = {"owner_sums": MATRICES, "counts": (OWNERS,)}
"""Axes of the arrays of a `GradientIndex`."""


class GradientIndex(NamedTuple):
    """Summed features of every owner's records.

    Attributes:
      owner_sums: by the path of each attributed matrix, ``[L, O, D', F']``; float32
        while they are summed, then ``attribution.index_dtype``.
      counts: ``[O]`` float32 records; seed: ``[]`` uint32 of the projection.
    """

    owner_sums: dict[str, Array]
    counts: Array
    seed: Array


class Features(NamedTuple):
    """How a layer's per-example gradient is looked at: sum_t x'_t^T e'_t.

    Attributes:
      held: ``(matrices by name, seed) -> arrays by name``, with the axis L first,
        that `sides` needs.
      sides: ``(x, e, held of one layer) -> (x' [B, T, D'], e' [B, T, F'])``.
      shape: ``(D, F) -> (D', F')``.
    """

    held: Callable[[dict[str, Any], Array], dict[str, Any]]
    sides: Callable[[Array, Array, Any], tuple[Array, Array]]
    shape: Callable[[int, int], tuple[int, int]]


class How(NamedTuple):
    """What a bilinear kernel compares.

    Attributes:
      model: the attributed decoder; features: of its gradients.
      reduction: over a response's tokens, ``mean`` or ``sum``.
      measure: what is differentiated, one of `measures`.
      emphasis: ``(model, params, batch) -> [B]``, a factor of each record; None: 1.
    """

    model: Decoder
    features: Features
    reduction: str
    measure: probe.Measure = measures.log_likelihoods
    emphasis: Callable[[Decoder, Any, TokenBatch], Array] | None = None


@dataclasses.dataclass(frozen=True)
class BilinearKernel(Kernel):
    """A `Kernel` that says how it compares, so that `cosine` and others can go on."""

    how: How | None = None


@functools.cache
def exact() -> Features:
    """Return the features that are the gradient itself."""
    return Features(
        lambda matrices, seed: dict.fromkeys(matrices, ()),
        lambda x, e, held: (x, e),
        lambda d, f: (d, f),
    )


def trigonometric_projections(layers: int, size: int, k: int, *, key: Array) -> Array:
    """P = (D/k)^{1/2} diag(s) C[:, S], ``[L, D, k]``: E[P P^T] = I, P^T P = (D/k) I.

    s: random signs; C: the orthonormal cosine transform; S: k of its columns at random.
    Orthogonal columns estimate a dot product with about (1 - k/D) of the variance of
    normal ones. Subsampled trigonometric transform (Tropp, 2011, arXiv 1011.1595).
    """
    signs, columns = random_signs_and_columns(layers, size, k, key=key)
    j = columns[:, None, :]
    odd = 2 * jnp.arange(size, dtype=jnp.uint32)[None, :, None] + 1
    high, low = j // 256, j % 256  # so that no product overflows
    phase = (odd * high % (4 * size) * 256 + odd * low) % (4 * size)
    waves = jnp.cos(jnp.pi / 2 / size * phase.astype(jnp.float32))
    waves = waves * jnp.where(j == 0, 1.0, 2.0**0.5)
    return signs[:, :, None] * waves * k**-0.5


def random_signs_and_columns(
    layers: int, size: int, k: int, *, key: Array
) -> tuple[Array, Array]:
    """Draw signs ``[L, D]`` float32, and k different columns of D ``[L, k]`` uint32."""

    def columns(key: Array) -> Array:
        return jax.random.permutation(key, jnp.arange(size, dtype=jnp.uint32))[:k]

    for_signs, for_columns = jax.random.split(key)
    signs = jax.random.rademacher(for_signs, (layers, size), dtype=jnp.float32)
    return signs, jax.vmap(columns)(jax.random.split(for_columns, layers))


def projections(
    sizes: dict[str, tuple[int, int]], k: int, seed: Array
) -> dict[str, Array]:
    """Return P ``[L, D, min(k, D)]`` by name, of ``(L, D)``; the seed and name draw it.

    A side no longer than k is the identity. Names of one size are drawn in one call,
    for every call takes seconds to compile.
    """
    drawn: dict[str, Array] = {}
    for layers, size in dict.fromkeys(sizes.values()):
        names = [name for name, own in sizes.items() if own == (layers, size)]
        if size <= k:
            whole = jnp.broadcast_to(jnp.eye(size), (layers, size, size))
            drawn |= dict.fromkeys(names, whole)
            continue
        numbers = np.asarray([zlib.crc32(name.encode()) for name in names], np.uint32)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), numbers)
        draw = functools.partial(trigonometric_projections, layers, size, k)
        drawn |= zip(names, jax.vmap(lambda key, draw=draw: draw(key=key))(keys))
    return drawn


@functools.cache
def projected(k: int) -> Features:
    """(x P_in)^T (e P_out) with at most k columns a side: LoGra (Choe et al., 2024).

    P_in and P_out are `trigonometric_projections` given by the seed, layer and path, so
    that the expected dot product is the exact one; a side no longer than k stays whole.
    """

    def held(matrices: dict[str, Any], seed: Array) -> dict[str, Any]:
        sizes: dict[str, tuple[int, int]] = {}
        for name, leaf in matrices.items():
            layers, d, f = leaf.shape
            sizes |= {f"{name}/in": (layers, d), f"{name}/out": (layers, f)}
        drawn = projections(sizes, k, seed)
        return {name: (drawn[f"{name}/in"], drawn[f"{name}/out"]) for name in matrices}

    def sides(x: Array, e: Array, pair) -> tuple[Array, Array]:
        left, right = pair
        return x.astype(jnp.float32) @ left, e @ right

    return Features(held, sides, lambda d, f: (min(d, k), min(f, k)))


def in_places(params: Any, make: Callable[[Any, str], Any]) -> Any:
    """Return ``make(matrix, name)`` in the place of every attributed matrix."""
    tree = attributed(params)
    made = [make(leaf, dotted(path)) for path, leaf in named_leaves(tree)]
    return jax.tree.unflatten(jax.tree.structure(tree), made)


def dotted(path: str) -> str:
    """Return the name of a matrix in an index."""
    return path.replace("/", ".")


def by_matrix(params: Any, make: Callable[[Any], Any]) -> dict[str, Any]:
    """Return ``make(leaf)`` of every attributed matrix, by its name in an index."""
    return {dotted(path): make(leaf) for path, leaf in named_leaves(attributed(params))}


def by_name(params: Any, tree: Any) -> dict[str, Any]:
    """Return what ``tree`` has in the place of every attributed matrix, by its name."""
    places = jax.tree.structure(attributed(params))
    values = places.flatten_up_to(tree)  # type: ignore[attr-defined]
    return dict(zip(by_matrix(params, lambda leaf: leaf), values, strict=True))


def held_for(features: Features, params: Any, seed: Array) -> dict[str, Any]:
    """Return what features need of every attributed matrix, by its name."""
    return features.held(by_matrix(params, lambda leaf: leaf), seed)


def over_layers(x: Array, leaf: Any) -> Array:
    """Return the same ``x`` for every layer of ``leaf``: ``[L, ...]``."""
    return jnp.broadcast_to(x, (len(leaf), *x.shape))


def contraction(contract: Callable[[Array, Array, Any], Any]):
    """Return ``features -> contraction``: of the sides that features give, once each.

    The slot holds what features need and what ``contract`` takes beside both sides.
    """

    @functools.cache
    def of(features: Features) -> probe.Contract:
        def seen(x: Array, e: Array, held) -> Any:
            arrays, own = held
            return contract(*features.sides(x, e, arrays), own)

        return seen

    return of


@contraction
def summing(x: Array, e: Array, weights: Array) -> Array:
    """Contract to sum_b w_bo f_b, ``[O, D', F']``."""

    def add(total: Array, own: Array, start: Any) -> Array:
        block = jnp.einsum("bo,bdf->odf", weights, own)
        return jax.lax.dynamic_update_slice_in_dim(total, block, start, axis=1)

    shape = (weights.shape[1], x.shape[-1], e.shape[-1])
    return over_rows(x, e, add, jnp.zeros(shape, jnp.float32))


@contraction
def scoring(x: Array, e: Array, owners: probe.Whole) -> Array:
    """Contract to <f_b, G_o>, ``[B, O]``."""

    def add(total: Array, own: Array, start: Any) -> Array:
        return total + dot_products(own, owners.rows(start, own.shape[1]))

    shape = (len(x), owners.array.shape[1])
    return over_rows(x, e, add, jnp.zeros(shape, jnp.float32))


@contraction
def comparing(x: Array, e: Array, owners: probe.Whole) -> tuple[Array, Array]:
    """Contract to <f_b, G_o> ``[B, O]`` and |f_b|^2 ``[B]``."""

    def add(total: tuple[Array, Array], own: Array, start: Any):
        scores = total[0] + dot_products(own, owners.rows(start, own.shape[1]))
        return scores, total[1] + jnp.sum(own**2, axis=(1, 2))

    zeros = jnp.zeros((len(x), owners.array.shape[1])), jnp.zeros(len(x))
    return over_rows(x, e, add, zeros)


def dot_products(own: Array, owners: Array) -> Array:
    """Return <f_b, G_o> ``[B, O]`` of ``own [B, D, F]`` and ``owners [O, D, F]``."""
    return jnp.einsum("bdf,odf->bo", own, owners)


def written(
    how: How,
    contract: probe.Contract,
    params: Any,
    text: TokenBatch,
    *,
    slot: Callable[[Any, str], Slot],
    weight: Array | float = 1.0,
) -> tuple[Array, dict[str, Any]]:
    """Run one backward pass over B responses whose measurements weigh ``weight [B]``.

    Returns:
      The sum of the measurements, and what every ``slot(matrix, name)`` was given.
    """
    value, new = probe.probe(
        how.model,
        contract,
        params,
        text,
        weight=weight * measures.token_weight(text, how.reduction),
        slots=in_places(params, slot),
        measure=how.measure,
    )
    return value, by_name(params, new)


@functools.partial(jax.jit, static_argnames="how")
def add_records(
    how: How, params: Any, batch: OwnerBatch, index: GradientIndex
) -> tuple[GradientIndex, dict[str, Array]]:
    """Add the features of a batch of records to those of their owners."""
    weights = owner_weights(batch, len(index.counts))
    share = weights
    if how.emphasis is not None:
        share = weights * how.emphasis(how.model, params, batch.text)[:, None]

    arrays = held_for(how.features, params, index.seed)

    def slot(leaf: Any, path: str) -> Slot:
        shape = (len(leaf), share.shape[1], *how.features.shape(*leaf.shape[1:]))
        held = arrays[path], over_layers(share, leaf)
        return Slot(held, jnp.zeros(shape, jnp.float32))

    contract = summing(how.features)
    value, new = written(how, contract, params, batch.text, slot=slot)
    sums = optax.tree.add(wide(index.owner_sums), new)
    counts = index.counts + jnp.sum(weights, axis=0)
    return GradientIndex(sums, counts, index.seed), {"loss": -value / len(weights)}


def wide(sums: dict[str, Array]) -> dict[str, Array]:
    """Return owners' sums in float32, to add to them."""
    return optax.tree.cast(sums, jnp.float32)


def owner_scores(
    how: How, params: Any, index: GradientIndex, queries: TokenBatch
) -> Array:
    """Return <f_q, G_o> ``[B, O]``, G_o the mean of the owner's records."""
    zeros = jnp.zeros((len(queries.response), len(index.counts)))
    dots = contracted(how, scoring, params, index, queries, zeros=zeros)
    return dots / or_one(index.counts)


def owner_cosines(
    how: How, params: Any, index: GradientIndex, queries: TokenBatch
) -> Array:
    """Return cos(f_q, G_o) ``[B, O]``."""
    rows, owners = len(queries.response), len(index.counts)
    zeros = jnp.zeros((rows, owners)), jnp.zeros(rows)
    dots, squares = contracted(how, comparing, params, index, queries, zeros=zeros)
    sums = wide(index.owner_sums).values()
    theirs = sum(jnp.sum(x**2, axis=(0, 2, 3)) for x in sums)
    size = jnp.sqrt(squares)[:, None] * jnp.sqrt(theirs)[None]
    return dots / jnp.maximum(size, FLOOR)


def contracted(
    how: How,
    contract: Callable[[Features], probe.Contract],
    params: Any,
    index: GradientIndex,
    queries: TokenBatch,
    *,
    zeros: Any,
) -> Any:
    """Return what ``contract`` writes, like ``zeros``, summed over all matrices."""
    arrays = held_for(how.features, params, index.seed)

    def slot(leaf: Any, path: str) -> Slot:
        held = arrays[path], probe.Whole(index.owner_sums[path])
        out = jax.tree.map(lambda x: jnp.zeros((len(leaf), *x.shape)), zeros)
        return Slot(held, out)

    _, each = written(how, contract(how.features), params, queries, slot=slot)
    return jax.tree.map(lambda *own: sum(x.sum(axis=0) for x in own), *each.values())


def folded_scores(
    how: How, params: Any, index: GradientIndex, weights: Array, queries: TokenBatch
) -> Array:
    """Return sum_o r_o <g_q, G_o> ``[B]`` for fixed ``r [O]``, by one ``jvp``."""
    return probe.folded(
        how.model,
        params,
        queries,
        weight=measures.token_weight(queries, how.reduction),
        owners=in_places(params, lambda leaf, name: index.owner_sums[name]),
        weights=weights / or_one(index.counts),
    )


def bilinear(name: str, setup: Setup, features: Features, **how: Any) -> BilinearKernel:
    """Return a kernel that compares features of the query with the owners' means.

    ``how`` takes more fields of `How`.
    """
    seen = How(setup.model, features, setup.cfg.reduction, **how)

    def init(params, *, key: Array) -> GradientIndex:
        def zeros(leaf: Array) -> Array:
            d, f = features.shape(*leaf.shape[1:])
            return jnp.zeros((len(leaf), setup.owners, d, f), jnp.float32)

        seed = jnp.uint32(setup.cfg.projection_seed)
        counts = jnp.zeros(setup.owners, jnp.float32)
        return GradientIndex(by_matrix(params, zeros), counts, seed)

    def kept(params: Any, acc: GradientIndex) -> Index:
        dtype = jnp.dtype(setup.cfg.index_dtype)
        return acc._replace(owner_sums=optax.tree.cast(acc.owner_sums, dtype))

    is_whole = features == exact() and seen.measure is measures.log_likelihoods
    return BilinearKernel(
        name=name,
        owners=setup.owners,
        init=init,
        update=lambda params, batch, acc: add_records(seen, params, batch, acc),
        finalize=kept,
        score=functools.partial(owner_scores, seen),
        axes=by_field(AXES),
        fold=functools.partial(folded_scores, seen) if is_whole else None,
        differentiates=measures.in_words(seen.measure),
        follows_model=True,
        how=seen,
    )


def cosine(kernel: BilinearKernel) -> BilinearKernel:
    """Return the kernel with dot products divided by both norms, ``[-1, 1]``."""
    assert kernel.how is not None
    score = functools.partial(owner_cosines, kernel.how)
    return dataclasses.replace(kernel, score=score, fold=None)
