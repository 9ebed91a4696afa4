"""Kernel `arnoldi`: influence in the span of the Hessian's largest Ritz vectors.

Arnoldi's iteration with products H v = d/dt grad L(params + t v) over the owners'
records gives pairs (lambda_r, v_r); s(q, o) = sum_r <g_q, v_r> <v_r, G_o> / lambda_r
(Schioppa et al., 2022).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from pydantic import Field

from dareu_jax.attribution.gradients import bilinear, measures
from dareu_jax.attribution.gradients.bilinear import GradientIndex, How, by_matrix
from dareu_jax.attribution.gradients.probe import attributed
from dareu_jax.attribution.kernel import (
    OWNERS,
    Kernel,
    OwnerBatch,
    Setup,
    by_field,
    is_owned,
    options_of,
    or_one,
    owner_weights,
)
from dareu_jax.config import Section
from dareu_jax.data.batches import TokenBatch
from dareu_jax.models import join, with_all_derivatives
from dareu_jax.registry import KERNELS

Array = jax.Array
ROUNDING = 1e-5
"""What is smaller than this, relative to what it was left of, is float32 rounding."""
SETTLED = 10.0
"""How many times its error a Ritz value must be."""


class Krylov(NamedTuple):
    """Orthonormal ``basis [L, K + 1, D, F]``, H v_j so far, and the Hessenberg matrix.

    The axis after L runs over the vectors, as it runs over owners in `GradientIndex`.
    """

    basis: dict[str, Array]
    product: dict[str, Array]  # [L, D, F]
    hessenberg: Array  # [K + 1, K]
    column: Array  # [] int32
    weight: Array  # [] float32, records seen in this pass


class Ritz(NamedTuple):
    """``vectors [L, R, D, F]`` and ``values [R]`` of H, and the owners seen in them."""

    vectors: dict[str, Array]
    values: Array
    owner_dots: Array  # [O, R]
    counts: Array  # [O]


IN, OUT = "gradient_in", "gradient_out"
AXES = {
    "basis": ("layers", "krylov", IN, OUT),
    "product": ("layers", IN, OUT),
    "vectors": ("layers", "ritz", IN, OUT),
    "owner_dots": (OWNERS, "ritz"),
    "counts": (OWNERS,),
}
"""Axes of the arrays of `Krylov` and `Ritz`."""


def inner(a: dict[str, Array], b: dict[str, Array]) -> Array:
    """Return <a_k, b> ``[K]``, summed over matrices ``[L, K, D, F]``, ``[L, D, F]``."""
    return sum(jnp.einsum("lkdf,ldf->k", a[path], b[path]) for path in b)  # type: ignore


def spanned(a: dict[str, Array], weights: Array) -> dict[str, Array]:
    """Return sum_k w_k a_k ``[L, D, F]``."""
    return {path: jnp.einsum("lkdf,k->ldf", x, weights) for path, x in a.items()}


def length(a: dict[str, Array]) -> Array:
    """Return |a| of ``a [L, D, F]`` over all matrices."""
    return jnp.sqrt(sum(jnp.sum(x**2) for x in a.values()))


def hessian_product(model, params, batch: TokenBatch, weight: Array, direction: Any):
    """Return H v of the loss -sum_b w_b log p, forward over reverse; a tree like v."""
    model = with_all_derivatives(model)

    def loss(matrices: Any) -> Array:
        return -measures.log_likelihood(model, join(params, matrices), batch, weight)

    return jax.jvp(jax.grad(loss), (attributed(params),), (direction,))[1]


@functools.partial(jax.jit, static_argnames=("how", "owners"))
def add_product(how: How, owners: int, params, batch: OwnerBatch, state: Krylov):
    """Add a batch of records to H v_j."""

    def direction(leaf: Array, path: str) -> Array:
        return state.basis[path][:, state.column].astype(leaf.dtype)

    owned = is_owned(batch, owners)
    tree = hessian_product(
        how.model,
        params,
        batch.text,
        weight=owned * measures.token_weight(batch.text, how.reduction),
        direction=bilinear.in_places(params, direction),
    )
    new = optax.tree.cast(bilinear.by_name(params, tree), jnp.float32)
    product = optax.tree.add(state.product, new)
    return state._replace(product=product, weight=state.weight + jnp.sum(owned))


@jax.jit
def orthogonalise(state: Krylov) -> Krylov:
    """Return the state after one step of Arnoldi's iteration.

    Gram-Schmidt is done twice, against rounding. A product that lies in the basis
    already ends the iteration: what is left of it is rounding and no new direction.
    """
    w = {p: x / jnp.maximum(state.weight, 1.0) for p, x in state.product.items()}
    size, total = length(w), jnp.zeros(len(state.hessenberg), jnp.float32)
    for _ in range(2):
        along = inner(state.basis, w)
        w = optax.tree.sub(w, spanned(state.basis, along))
        total = total + along
    norm = length(w)
    is_new = norm > ROUNDING * size
    column = total.at[state.column + 1].set(jnp.where(is_new, norm, 0.0))
    scale = jnp.where(is_new, 1.0 / jnp.where(is_new, norm, 1.0), 0.0)
    basis = {
        path: x.at[:, state.column + 1].set(scale * w[path])
        for path, x in state.basis.items()
    }
    return Krylov(
        basis=basis,
        product=jax.tree.map(jnp.zeros_like, state.product),
        hessenberg=state.hessenberg.at[:, state.column].set(column),
        column=state.column + 1,
        weight=jnp.float32(0.0),
    )


@functools.partial(jax.jit, static_argnames=("rank", "owners"))
def ritz_pairs(rank: int, owners: int, state: Krylov) -> Ritz:
    """Return the ``rank`` pairs of largest value; an unsettled value becomes 0.

    An eigenvalue is within |H v - lambda v| = h_{K+1,K} |mixing_K| of every Ritz value.
    A value that scores are divided by must be known to a tenth of itself. Where too few
    iterations have settled none, it must be positive for certain.
    """
    square = state.hessenberg[:-1]
    values, mixing = jnp.linalg.eigh((square + square.T) / 2)
    unsure = state.hessenberg[-1, -1] * jnp.abs(mixing[-1])
    unsure = jnp.maximum(unsure, ROUNDING / SETTLED * jnp.max(jnp.abs(values)))
    settled = values > SETTLED * unsure
    kept = jnp.where(jnp.any(settled), settled, values > unsure)
    values = jnp.where(kept, values, 0.0)[::-1][:rank]
    mixing = mixing[:, ::-1][:, :rank]
    vectors = {
        path: jnp.einsum("lkdf,kr->lrdf", x[:, :-1], mixing)
        for path, x in state.basis.items()
    }
    dots = jnp.zeros((owners, rank), jnp.float32)
    return Ritz(vectors, values, dots, jnp.zeros(owners, jnp.float32))


def in_vectors(how: How, params: Any, state: Ritz, batch: TokenBatch) -> Array:
    """Return <g_b, v_r> ``[B, R]``."""
    rank = len(state.values)
    seen = GradientIndex(state.vectors, jnp.ones(rank), jnp.uint32(0))
    zeros = jnp.zeros((len(batch.response), rank))
    return bilinear.contracted(
        how, bilinear.scoring, params, index=seen, queries=batch, zeros=zeros
    )


@functools.partial(jax.jit, static_argnames="how")
def add_owners(how: How, params, batch: OwnerBatch, state: Ritz) -> Ritz:
    """Add the records' coordinates to those of their owners."""
    weights = owner_weights(batch, len(state.counts))
    dots = weights.T @ in_vectors(how, params, state, batch.text)
    counts = state.counts + jnp.sum(weights, axis=0)
    return state._replace(owner_dots=state.owner_dots + dots, counts=counts)


class ArnoldiOptions(Section):
    """The section ``attribution.arnoldi``."""

    iterations: int = Field(20, ge=2)  # passes over the owners' records
    rank: int = Field(10, ge=1)  # Ritz pairs kept


@KERNELS.register(
    "arnoldi", "influence in the Hessian's largest Ritz vectors", options=ArnoldiOptions
)
def make_arnoldi(setup: Setup) -> Kernel:
    """Return the influence by Arnoldi's iteration (Schioppa et al., 2022)."""
    how = How(setup.model, bilinear.exact(), setup.cfg.reduction)
    own: ArnoldiOptions = options_of(setup, "arnoldi")
    owners, steps, rank = setup.owners, own.iterations, min(own.rank, own.iterations)

    def init(params, *, key: Array) -> Krylov:
        shapes = by_matrix(params, jnp.shape)
        keys = jax.random.split(key, len(shapes))
        start = {
            path: jax.random.normal(one, shape, jnp.float32)
            for one, (path, shape) in zip(keys, shapes.items(), strict=True)
        }
        norm = length(start)

        def first(x: Array) -> Array:
            empty = jnp.zeros((x.shape[0], steps + 1, *x.shape[1:]))
            return empty.at[:, 0].set(x / norm)

        return Krylov(
            basis=jax.tree.map(first, start),
            product=jax.tree.map(jnp.zeros_like, start),
            hessenberg=jnp.zeros((steps + 1, steps), jnp.float32),
            column=jnp.int32(0),
            weight=jnp.float32(0.0),
        )

    def update(params, batch: OwnerBatch, acc):
        silent = {"loss": jnp.float32(0.0)}
        if isinstance(acc, Krylov):
            return add_product(how, owners, params, batch, state=acc), silent
        return add_owners(how, params, batch, acc), silent

    def advance(params, acc: Krylov, number: int):
        acc = orthogonalise(acc)
        return ritz_pairs(rank, owners, acc) if number == steps else acc

    def score(params, index: Ritz, queries: TokenBatch) -> Array:
        inverse = jnp.where(index.values > 0.0, 1.0 / or_one(index.values), 0.0)
        means = index.owner_dots / or_one(index.counts)[:, None]
        return in_vectors(how, params, index, queries) @ (means * inverse).T

    return Kernel(
        name="arnoldi",
        owners=owners,
        init=init,
        update=update,
        score=score,
        passes=steps + 1,
        advance=advance,
        axes=by_field(AXES),
        differentiates=measures.in_words(how.measure),
        follows_model=True,
    )
