"""Kernel `datainf`: influence with H^-1 as a mean of rank-one inverses.

H^-1 G = (G - mean_n g_n <g_n, G> / (lambda + |g_n|^2)) / lambda for every matrix of a
layer, lambda = damping times the mean square of its gradients' entries
(Kwon et al., 2024). Meant for small matrices such as adapters.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dareu_jax.attribution.gradients import bilinear, precondition
from dareu_jax.attribution.gradients.bilinear import How, by_matrix, over_layers
from dareu_jax.attribution.gradients.ghost import square_norms
from dareu_jax.attribution.gradients.precondition import Preconditioner, Sums
from dareu_jax.attribution.gradients.probe import Contract, Slot, example_gradients
from dareu_jax.attribution.kernel import Kernel, OwnerBatch, Setup, is_owned
from dareu_jax.registry import KERNELS

Array = jax.Array


class Squares(NamedTuple):
    """Sum over records of |g_n|^2 of every layer ``[L]``, by matrix."""

    squares: dict[str, Array]
    records: Array


class Corrections(NamedTuple):
    """Sum over records of g_n <g_n, G_o> / (lambda + |g_n|^2), ``[L, O, D, F]``."""

    squares: dict[str, Array]
    records: Array
    corrections: dict[str, Array]


def summed_norms(x: Array, e: Array, weight: Array) -> Array:
    """Return sum_b w_b |g_b|^2, a scalar."""
    return jnp.sum(weight * square_norms(x, e, ()))


def corrections(x: Array, e: Array, held) -> Array:
    """Return sum_b w_b g_b <g_b, G_o> / (lambda + |g_b|^2), ``[O, D, F]``."""
    owners, ridge, weight = held
    g = example_gradients(x, e)
    size = weight / (ridge + jnp.sum(g**2, axis=(1, 2)))
    share = size[:, None] * bilinear.dot_products(g, owners)
    return jnp.einsum("bo,bdf->odf", share, g)


def ridges(damping: float, state: Any, sums: Sums) -> dict[str, Array]:
    """Return lambda of every layer ``[L]``, by matrix."""
    count = jnp.maximum(state.records, 1.0)
    return {
        path: damping * state.squares[path] / (count * g.shape[2] * g.shape[3]) + 1e-20
        for path, g in sums.items()
    }


@functools.partial(jax.jit, static_argnames=("how", "owners", "damping"))
def add_batch(
    how: How,
    owners: int,
    damping: float,
    params: Any,
    batch: OwnerBatch,
    state: Any,
    sums: Sums,
) -> Any:
    """Add a batch of records to `Squares` or to `Corrections`."""
    owned = is_owned(batch, owners)
    first = isinstance(state, Squares)
    ridge = {} if first else ridges(damping, state, sums)

    def slot(leaf: Any, path: str) -> Slot:
        each = over_layers(owned, leaf)
        if first:
            return Slot(each, jnp.zeros(len(leaf)))
        held = sums[path], ridge[path], each
        return Slot(held, jnp.zeros(sums[path].shape, jnp.float32))

    contract: Contract = summed_norms if first else corrections
    _, added = bilinear.written(how, contract, params, batch.text, slot=slot)
    if first:
        squares = optax.tree.add(state.squares, added)
        return Squares(squares, state.records + jnp.sum(owned))
    return state._replace(corrections=optax.tree.add(state.corrections, added))


@functools.partial(jax.jit, static_argnames="damping")
def apply_inverse(damping: float, params: Any, state: Corrections, sums: Sums) -> Sums:
    """Return H^-1 times every owner's gradient."""
    ridge, count = ridges(damping, state, sums), jnp.maximum(state.records, 1.0)
    return {
        path: (g - state.corrections[path] / count) / ridge[path][:, None, None, None]
        for path, g in sums.items()
    }


@KERNELS.register("datainf", "influence, H^-1 as a mean of rank-one inverses")
def make_datainf(setup: Setup) -> Kernel:
    """Return DataInf (Kwon et al., 2024) of the owner's mean gradient."""
    damping = setup.cfg.damping

    def init(params, *, key: Array) -> Squares:
        squares = by_matrix(params, lambda leaf: jnp.zeros(len(leaf), jnp.float32))
        return Squares(squares, jnp.float32(0.0))

    def advance(params, state: Squares) -> Corrections:
        def zeros(leaf: Array) -> Array:
            shape = (leaf.shape[0], setup.owners, *leaf.shape[1:])
            return jnp.zeros(shape, jnp.float32)

        return Corrections(state.squares, state.records, by_matrix(params, zeros))

    how = How(setup.model, bilinear.exact(), setup.cfg.reduction)
    fit = Preconditioner(
        init=init,
        update=functools.partial(add_batch, how, setup.owners, damping),
        apply=functools.partial(apply_inverse, damping),
        axes={"corrections": bilinear.MATRICES},
        passes=2,
        advance=advance,
        is_shared=False,
    )
    base = bilinear.bilinear("datainf", setup, bilinear.exact())
    return precondition.precondition(base, fit)
