"""Gradient attribution for any JAX model, from its ``loss_fn(params, example)``.

``params`` is a tree of float arrays, ``example`` is a tree of arrays without a batch
axis, and the loss is a scalar. ``examples`` and ``queries`` have an axis of N or Q
examples in front. A score is <grad loss(query), grad loss(example)>: it is positive
where a gradient step on the example makes the loss of the query smaller.

All gradients are made by ``vmap(grad)``, which works for every model. With ``chunk`` at
most that many per-example gradients exist at a time. All results are float32.
"""

import functools
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dareu_jax.attribution.gradients.bilinear import (
    FLOOR,
    GradientIndex,
    random_signs_and_columns,
)
from dareu_jax.attribution.kernel import Kernel, OwnerBatch, or_one, owner_weights
from dareu_jax.parallel import named_leaves

Array = jax.Array
LossFn = Callable[[Any, Any], Array]
Draws = dict[str, tuple[Array, Array]]


def gradient(loss_fn: LossFn, params: Any, example: Any) -> Any:
    """Return the gradient of one example's loss by the parameters, in float32."""
    return optax.tree.cast(jax.grad(loss_fn)(params, example), jnp.float32)


def mapped(f: Callable[[Any], Any], xs: Any, chunk: int | None) -> Any:
    """Return ``f`` of every row of ``xs``, for ``chunk`` rows at a time."""
    return jax.vmap(f)(xs) if chunk is None else jax.lax.map(f, xs, batch_size=chunk)


@functools.partial(jax.jit, static_argnames=("loss_fn", "chunk"))
def per_example_gradients(
    loss_fn: LossFn, params: Any, examples: Any, *, chunk: int | None = None
) -> Any:
    """Return the gradient of every example: a tree like ``params``, ``[N, ...]``."""
    return mapped(functools.partial(gradient, loss_fn, params), examples, chunk)


@functools.partial(jax.jit, static_argnames=("loss_fn", "chunk"))
def grad_dot(
    loss_fn: LossFn,
    params: Any,
    queries: Any,
    examples: Any,
    *,
    chunk: int | None = None,
) -> Array:
    """Return <grad loss(q), grad loss(n)> of every pair: ``[Q, N]`` float32.

    This is TracIn at one checkpoint (Pruthi et al., 2020, arXiv 2002.08484). With
    ``chunk`` the gradients of all examples are made anew for every chunk of queries, so
    that at most two chunks of gradients exist at a time.
    """
    of_one = functools.partial(gradient, loss_fn, params)
    return of_pairs(optax.tree.vdot, of_one, queries, examples, chunk=chunk)


@functools.partial(jax.jit, static_argnames=("loss_fn", "chunk"))
def grad_cos(
    loss_fn: LossFn,
    params: Any,
    queries: Any,
    examples: Any,
    *,
    chunk: int | None = None,
) -> Array:
    """Return the cosine of both gradients of every pair: ``[Q, N]`` float32."""
    of_one = functools.partial(gradient, loss_fn, params)
    return of_pairs(cosine_of, of_one, queries, examples, chunk=chunk)


def cosine_of(a: Any, b: Any) -> Array:
    """Return <a, b> / (|a| |b|) of two trees; 0 where one of them is 0."""
    norms = optax.tree.norm(a) * optax.tree.norm(b)
    return optax.tree.vdot(a, b) / jnp.maximum(norms, FLOOR)


def of_pairs(
    compare: Callable[[Any, Any], Array],
    of_one: Callable[[Any], Any],
    queries: Any,
    examples: Any,
    *,
    chunk: int | None,
) -> Array:
    """Return ``compare(of_one(q), of_one(n))`` of every pair: ``[Q, N]``."""

    def row(query: Any) -> Array:
        own = of_one(query)
        return mapped(lambda example: compare(own, of_one(example)), examples, chunk)

    return mapped(row, queries, chunk)


@functools.partial(jax.jit, static_argnames=("loss_fn", "size", "chunk"))
def projected_gradients(
    loss_fn: LossFn,
    params: Any,
    examples: Any,
    *,
    size: int,
    seed: int | Array = 0,
    chunk: int | None = None,
) -> Array:
    """Return the randomly projected gradient of every example: ``[N, K]`` float32.

    The expected inner product of two projected gradients, over seeds, is that of the
    gradients: ``projected @ projected.T`` estimates `grad_dot`. See `project`.

    Args:
      size: the most numbers that are kept of one leaf of ``params``.
      seed: of the projection; results with one seed can be compared.
    """
    draws = drawn(params, size, seed)

    def of_one(example: Any) -> Array:
        kept = project(gradient(loss_fn, params, example), draws)
        return jnp.concatenate([x.ravel() for x in kept.values()])

    return mapped(of_one, examples, chunk)


def drawn(params: Any, size: int | None, seed: int | Array) -> Draws:
    """Draw, by path, signs ``[D]`` and ``size`` columns of leaves of more numbers."""
    start = jax.random.key(seed)
    draws = {}
    for path, x in named_leaves(params):
        if size and x.size > size:
            key = jax.random.fold_in(start, zlib.crc32(path.encode()))
            signs, columns = random_signs_and_columns(1, x.size, size, key=key)
            draws[path] = signs[0], columns[0]
    return draws


def project(tree: Any, draws: Draws) -> dict[str, Array]:
    """Return (D/k)^{1/2} (C^T diag(s) g)[S] of every leaf g that has draws (s, S).

    C is the orthonormal cosine transform. No matrix is made: the transform of a leaf of
    D numbers takes O(D log D) steps and O(D) memory. A leaf without draws stays whole.
    Subsampled trigonometric transform (Tropp, 2011, arXiv 1011.1595).
    """

    def of_leaf(path: str, x: Array) -> Array:
        if path not in draws:
            return x
        signs, columns = draws[path]
        waves = jax.scipy.fft.dct(x.ravel() * signs, norm="ortho")
        return waves[columns] * (x.size / len(columns)) ** 0.5

    return {path: of_leaf(path, x) for path, x in named_leaves(tree)}


def summed(
    f: Callable[[Any], tuple[Array, Any]],
    xs: Any,
    weights: Array,
    sums: Any,
    chunk: int | None,
) -> tuple[Array, Any]:
    """Return values ``[N]`` and ``sums + sum_n w_no features_n`` of every owner o.

    Args:
      f: from a row of ``xs [N, ...]`` to its value and a tree of features.
      weights: w ``[N, O]`` float32.
      sums: like the features, with O in front.
      chunk: rows at a time; None: all. Missing rows of the last chunk weigh nothing.
    """
    n = len(weights)
    count = min(chunk or n, n)
    places = jnp.arange(-(-n // count) * count, dtype=jnp.int32).reshape(-1, count)

    def add(sums: Any, place: Array) -> tuple[Any, Array]:
        row, real = place % n, place < n
        values, features = jax.vmap(f)(jax.tree.map(lambda x: x[row], xs))
        share = jnp.where(real[:, None], weights[row], 0.0).T
        more = jax.tree.map(lambda x: jnp.tensordot(share, x, 1), features)
        return optax.tree.add(sums, more), values

    sums, values = jax.lax.scan(add, sums, places)
    return values.ravel()[:n], sums


class How(NamedTuple):
    """What an owner kernel does; see `gradient_kernel`."""

    loss_fn: LossFn
    size: int | None
    cosine: bool
    chunk: int | None


@functools.partial(jax.jit, static_argnames="how")
def add_examples(
    how: How, params: Any, batch: OwnerBatch, acc: GradientIndex
) -> tuple[GradientIndex, dict[str, Array]]:
    """Add the gradients of a batch of examples to those of their owners."""
    draws = drawn(params, how.size, acc.seed)
    weights = owner_weights(batch, len(acc.counts))

    def of_one(example: Any) -> tuple[Array, dict[str, Array]]:
        loss, own = jax.value_and_grad(how.loss_fn)(params, example)
        return loss, project(optax.tree.cast(own, jnp.float32), draws)

    losses, sums = summed(of_one, batch.text, weights, acc.owner_sums, how.chunk)
    counts = acc.counts + jnp.sum(weights, axis=0)
    return GradientIndex(sums, counts, acc.seed), {"loss": jnp.mean(losses)}


@functools.partial(jax.jit, static_argnames="how")
def owner_scores(how: How, params: Any, index: GradientIndex, queries: Any) -> Array:
    """Return the inner product, or cosine, of query and owner's mean: ``[Q, O]``."""
    draws = drawn(params, how.size, index.seed)
    compare = jax.vmap(cosine_of if how.cosine else optax.tree.vdot, in_axes=(None, 0))

    def of_one(query: Any) -> Array:
        own = project(gradient(how.loss_fn, params, query), draws)
        return compare(own, index.owner_sums)

    found = mapped(of_one, queries, how.chunk)
    return found if how.cosine else found / or_one(index.counts)[None, :]


def owner_first(tree: GradientIndex) -> Any:
    """Return the axis names of an index: owners are the first axis of every array."""
    return jax.tree.map(lambda x: ("owners", *[""] * (x.ndim - 1))[: x.ndim], tree)


def gradient_kernel(
    loss_fn: LossFn,
    owners: int,
    *,
    size: int | None = None,
    cosine: bool = False,
    seed: int = 0,
    chunk: int | None = None,
) -> Kernel:
    """Return an attribution kernel of a model that is known by its loss alone.

    It scores a query by every owner's mean gradient. `build_index`, `owners.merge`,
    `owners.select` and `owners.extend` take it as they take the package's own kernels.
    Where these take text, it takes a tree of arrays with the examples' axis in front:
    ``OwnerBatch(examples, owner)``.

    Args:
      owners: O, the number of columns of its scores.
      size: the most numbers that are kept of one leaf, by `project`; None: all.
      cosine: whether to divide by the norms of both sides.
      chunk: examples that are differentiated at a time; None: a whole batch.
    """
    how = How(loss_fn, size, cosine, chunk)

    def init(params: Any, *, key: Array) -> GradientIndex:
        one = jax.eval_shape(lambda p: project(p, drawn(p, size, seed)), params)
        sums = {p: jnp.zeros((owners, *x.shape), jnp.float32) for p, x in one.items()}
        return GradientIndex(sums, jnp.zeros(owners, jnp.float32), jnp.uint32(seed))

    return Kernel(
        name="grad_cos" if cosine else "grad_dot",
        owners=owners,
        init=init,
        update=functools.partial(add_examples, how),
        score=functools.partial(owner_scores, how),
        axes=owner_first,
        follows_model=True,
    )
