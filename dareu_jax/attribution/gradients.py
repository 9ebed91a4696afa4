"""Kernels on gradients of the response's log-likelihood: dot, cosine, projected.

G_o is the mean over the owner's records of g = grad log p(response | prompt), over the
matrices of `probe.attributed`. A positive score says that a step on the owner's data
makes the response more likely.
"""

import functools
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dareu_jax.attribution.kernel import Kernel, OwnerBatch, Setup, owner_weights
from dareu_jax.attribution.probe import (
    Slot,
    along,
    attributed,
    example_gradients,
    probe,
)
from dareu_jax.corpus.batches import TokenBatch
from dareu_jax.models import Decoder
from dareu_jax.parallel import named_leaves, path_name
from dareu_jax.registry import KERNELS

Array = jax.Array


class GradientIndex(NamedTuple):
    """Summed features of every owner's records.

    Attributes:
      owner_sums: by the path of each attributed matrix, ``[L, O, D', F']`` float32.
      counts: ``[O]`` float32 records; seed: ``[]`` uint32 of the projection.
    """

    owner_sums: dict[str, Array]
    counts: Array
    seed: Array


class Features(NamedTuple):
    """How a layer's per-example gradient is looked at.

    Attributes:
      held: ``(leaf, path, seed) -> arrays`` with the axis L first that `of` needs.
      of: ``(x, e, held of one layer) -> [B, D', F']`` float32.
      shape: ``(D, F) -> (D', F')``.
    """

    held: Callable[[Any, str, Array], Any]
    of: Callable[[Array, Array, Any], Array]
    shape: Callable[[int, int], tuple[int, int]]


@functools.cache
def exact() -> Features:
    """The gradient itself."""
    return Features(
        held=lambda leaf, path, seed: (),
        of=lambda x, e, held: example_gradients(x, e),
        shape=lambda d, f: (d, f),
    )


@functools.cache
def projected(k: int) -> Features:
    """(x P_in)^T (e P_out) with at most k columns a side: LoGra (Choe et al., 2024).

    P_in and P_out are normal with variance 1/k, given by the seed, layer and path, so
    that the expected dot product is the exact one; a side no longer than k stays whole.
    """

    def side(size: int, layers: int, name: str, seed: Array) -> Array:
        if size <= k:
            return jnp.broadcast_to(jnp.eye(size), (layers, size, size))
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
        return jax.random.normal(key, (layers, size, k)) * k**-0.5

    def held(leaf: Any, path: str, seed: Array):
        layers, d, f = leaf.shape
        return side(d, layers, f"{path}/in", seed), side(f, layers, f"{path}/out", seed)

    def of(x: Array, e: Array, sides) -> Array:
        left, right = sides
        return example_gradients(x.astype(jnp.float32) @ left, e @ right)

    return Features(held, of, lambda d, f: (min(d, k), min(f, k)))


def token_weight(batch: TokenBatch, reduction: str) -> Array:
    """``[B]`` float32: 1 / tokens of the response (mean) or 1 (sum)."""
    length = jnp.sum(batch.response_mask.astype(jnp.float32), axis=1)
    if reduction == "sum":
        return jnp.ones_like(length)
    return 1.0 / jnp.maximum(length, 1.0)


def slots_of(params: Any, make: Callable[[Any, str], Slot]) -> Any:
    """A tree of `Slot` in the place of the attributed matrices."""
    tree = attributed(params)
    slots = [make(leaf, dotted(path)) for path, leaf in named_leaves(tree)]
    return jax.tree.unflatten(jax.tree.structure(tree), slots)


def dotted(path: str) -> str:
    """The name of a matrix in an index."""
    return path.replace("/", ".")


@functools.cache
def summing(features: Features):
    """A contraction to sum_b w_bo f_b, ``[O, D', F']``."""

    def contract(x: Array, e: Array, held) -> Array:
        arrays, weights = held
        return jnp.einsum("bo,bdf->odf", weights, features.of(x, e, arrays))

    return contract


@functools.cache
def scoring(features: Features):
    """A contraction to <f_b, G_o>, ``[B, O]``."""

    def contract(x: Array, e: Array, held) -> Array:
        arrays, owners = held
        return jnp.einsum("bdf,odf->bo", features.of(x, e, arrays), owners)

    return contract


@functools.cache
def comparing(features: Features):
    """A contraction to <f_b, G_o> ``[B, O]`` and |f_b|^2 ``[B]``."""

    def contract(x: Array, e: Array, held) -> tuple[Array, Array]:
        arrays, owners = held
        own = features.of(x, e, arrays)
        return jnp.einsum("bdf,odf->bo", own, owners), jnp.sum(own**2, axis=(1, 2))

    return contract


@functools.partial(jax.jit, static_argnames=("model", "features", "reduction"))
def add_records(
    model: Decoder,
    features: Features,
    reduction: str,
    params: Any,
    batch: OwnerBatch,
    index: GradientIndex,
) -> tuple[GradientIndex, dict[str, Array]]:
    """Adds the features of a batch of records to those of their owners."""
    weights = owner_weights(batch, len(index.counts))

    def slot(leaf: Any, path: str) -> Slot:
        layers, (d, f) = leaf.shape[0], features.shape(*leaf.shape[1:])
        each = jnp.broadcast_to(weights, (layers, *weights.shape))
        out = jnp.zeros((layers, weights.shape[1], d, f), jnp.float32)
        return Slot((features.held(leaf, path, index.seed), each), out)

    weight = token_weight(batch.text, reduction)
    contract, slots = summing(features), slots_of(params, slot)
    value, new = probe(model, contract, params, batch.text, weight, slots)
    sums = {
        dotted(path): index.owner_sums[dotted(path)] + added
        for path, added in named_leaves(new)
    }
    counts = index.counts + jnp.sum(weights, axis=0)
    return GradientIndex(sums, counts, index.seed), {"loss": -value / len(weights)}


def owner_scores(
    model: Decoder,
    features: Features,
    reduction: str,
    params: Any,
    index: GradientIndex,
    queries: TokenBatch,
) -> Array:
    """<g_q, G_o> ``[B, O]``, G_o the mean of the owner's records."""
    zeros = jnp.zeros((len(queries.response), len(index.counts)))
    how = (model, scoring(features), features, reduction)
    dots = _contracted(*how, zeros, params, index, queries)
    return dots / jnp.maximum(index.counts, 1.0)


def owner_cosines(
    model: Decoder,
    features: Features,
    reduction: str,
    params: Any,
    index: GradientIndex,
    queries: TokenBatch,
) -> Array:
    """cos(g_q, G_o) ``[B, O]``."""
    rows, owners = len(queries.response), len(index.counts)
    zeros = jnp.zeros((rows, owners)), jnp.zeros(rows)
    how = (model, comparing(features), features, reduction)
    dots, squares = _contracted(*how, zeros, params, index, queries)
    theirs = sum(jnp.sum(x**2, axis=(0, 2, 3)) for x in index.owner_sums.values())
    size = jnp.sqrt(squares)[:, None] * jnp.sqrt(theirs)[None]
    return dots / jnp.maximum(size, FLOOR)


def _contracted(model, contract, features, reduction, zeros, params, index, queries):
    """What ``contract`` writes, like ``zeros``, summed over layers and matrices."""

    def slot(leaf: Any, path: str) -> Slot:
        held = (features.held(leaf, path, index.seed), index.owner_sums[path])
        out = jax.tree.map(lambda x: jnp.zeros((len(leaf), *x.shape)), zeros)
        return Slot(held, out)

    weight, slots = token_weight(queries, reduction), slots_of(params, slot)
    _, written = probe(model, contract, params, queries, weight, slots)
    matrices, kinds = map(jax.tree.structure, (attributed(params), zeros))
    each = jax.tree.transpose(matrices, kinds, written)
    return jax.tree.map(
        lambda _, own: sum(x.sum(axis=0) for x in jax.tree.leaves(own)), zeros, each
    )


def folded_scores(
    model: Decoder,
    reduction: str,
    params: Any,
    index: GradientIndex,
    weights: Array,
    queries: TokenBatch,
) -> Array:
    """sum_o r_o <g_q, G_o> ``[B]`` for fixed ``weights r [O]``, by one ``jvp``."""
    each = weights / jnp.maximum(index.counts, 1.0)
    tree = attributed(params)

    def fold(path: Any, leaf: Array) -> Array:
        owners = index.owner_sums[dotted(path_name(path))]
        folded = jnp.sum(each[None, :, None, None] * owners, axis=1)  # fused: no copy
        return folded.astype(leaf.dtype)

    direction = jax.tree_util.tree_map_with_path(fold, tree)
    return along(model, params, queries, token_weight(queries, reduction), direction)


def bilinear(
    name: str, setup: Setup, features: Features, *, cosine: bool = False
) -> Kernel:
    """A kernel that compares features of the query with the owners' means."""
    model, reduction = setup.model, setup.cfg.reduction
    how = (model, features, reduction)

    def init(params, *, key: Array) -> GradientIndex:
        def zeros(leaf: Array) -> Array:
            d, f = features.shape(*leaf.shape[1:])
            return jnp.zeros((len(leaf), setup.owners, d, f), jnp.float32)

        matrices = named_leaves(attributed(params))
        sums = {dotted(path): zeros(leaf) for path, leaf in matrices}
        seed = jnp.uint32(setup.cfg.projection_seed)
        return GradientIndex(sums, jnp.zeros(setup.owners, jnp.float32), seed)

    compare = owner_cosines if cosine else owner_scores
    return Kernel(
        name=name,
        owners=setup.owners,
        init=init,
        update=lambda params, batch, acc: add_records(*how, params, batch, acc),
        score=functools.partial(compare, *how),
    )


FLOOR = 1e-12
"""Below this product of norms a cosine is no number worth having."""


@KERNELS.register("grad_dot", "<grad log p(query), mean gradient of the owner>")
def make_grad_dot(setup: Setup) -> Kernel:
    """Gradient dot product: TracIn at one checkpoint (Pruthi et al., 2020)."""
    return bilinear("grad_dot", setup, exact())


@KERNELS.register("grad_cos", "cosine of the query's gradient and the owner's mean")
def make_grad_cos(setup: Setup) -> Kernel:
    """Cosine to the mean gradient of the owner."""
    return bilinear("grad_cos", setup, exact(), cosine=True)


@KERNELS.register("projected", "grad_dot on factored random projections (LoGra)")
def make_projected(setup: Setup) -> Kernel:
    """Projected gradient dot product (Choe et al., 2024), k per side."""
    return bilinear("projected", setup, projected(setup.cfg.projection_size))
