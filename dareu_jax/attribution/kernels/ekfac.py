"""Kernel `ekfac`: influence <g_q, H^-1 G_o> with H an eigenvalue-corrected K-FAC.

For one matrix A = E[x x^T] = U_A . U_A^T and S = E[e e^T] = U_S . U_S^T over tokens,
Lambda = E_n[(U_A^T g_n U_S)^2] over records, labels drawn from the model (the true
Fisher), and H^-1 G = U_A (U_A^T G U_S / (Lambda + damping mean Lambda)) U_S^T
(George et al., 2018; Grosse et al., 2023).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dareu_jax.attribution.gradients import bilinear, precondition
from dareu_jax.attribution.gradients.bilinear import How, by_matrix, over_layers
from dareu_jax.attribution.gradients.measures import sampled_log_likelihoods
from dareu_jax.attribution.gradients.precondition import Preconditioner, Sums
from dareu_jax.attribution.gradients.probe import Slot, example_gradients
from dareu_jax.attribution.kernel import Kernel, OwnerBatch, Setup, is_owned
from dareu_jax.models import whole_text
from dareu_jax.registry import KERNELS

Array = jax.Array


class Covariances(NamedTuple):
    """Sums of x x^T ``[L, D, D]`` and e e^T ``[L, F, F]`` over tokens, by matrix."""

    inputs: dict[str, Array]
    outputs: dict[str, Array]
    key: Array
    step: Array


class Spectrum(NamedTuple):
    """Eigenvectors ``[L, D, D]``, ``[L, F, F]``, sums of squares ``[L, D, F]``."""

    vectors_in: dict[str, Array]
    vectors_out: dict[str, Array]
    lambdas: dict[str, Array]
    records: Array
    key: Array
    step: Array


IN, OUT = "gradient_in", "gradient_out"
AXES = {
    "inputs": ("layers", "rows", IN),
    "outputs": ("layers", "rows", OUT),
    "vectors_in": ("layers", "rows", IN),
    "vectors_out": ("layers", "rows", OUT),
    "lambdas": ("layers", IN, OUT),
}
"""Axes of the arrays of `Covariances` and `Spectrum`."""


def covariance(x: Array, e: Array, mask: Array) -> tuple[Array, Array]:
    """Return sum x x^T ``[D, D]`` over true entries of ``mask [B, T]``, sum e e^T."""
    x = jnp.where(mask[..., None], x, 0)
    sums = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    return sums("btd,btc->dc", x, x), sums("btf,btg->fg", e, e)


def rotated_squares(x: Array, e: Array, u_in: Array, u_out: Array, weight: Array):
    """Return sum_b w_b (U_A^T g_b U_S)^2, ``[D, F]``."""
    turned = example_gradients(x.astype(jnp.float32) @ u_in, e @ u_out)
    return jnp.einsum("b,bdf->df", weight, turned**2)


def inverse(u_in: Array, u_out: Array, lambdas: Array, damping: float, g: Array):
    """Return H^-1 g ``[O, D, F]`` of a layer; damping is relative to mean Lambda.

    A layer without any gradient, such as A of an adapter whose B is 0, has Lambda = 0.
    """
    turned = jnp.einsum("cd,ocf,fg->odg", u_in, g, u_out)
    turned = turned / (lambdas + damping * jnp.mean(lambdas) + 1e-20)
    return jnp.einsum("cd,odg,fg->ocf", u_in, turned, u_out)


@functools.partial(jax.jit, static_argnames=("how", "owners"))
def add_covariances(
    how: How, owners: int, params, batch: OwnerBatch, state: Covariances
) -> Covariances:
    """Add a batch of records to `Covariances`."""
    owned = is_owned(batch, owners)
    _, mask = whole_text(batch.text)
    mask = mask & (owned > 0.0)[:, None]

    def slot(leaf: Any, path: str) -> Slot:
        layers, d, f = leaf.shape
        out = jnp.zeros((layers, d, d)), jnp.zeros((layers, f, f))
        return Slot(over_layers(mask, leaf), out)

    drawn, text = with_drawn_labels(how, state), batch.text
    _, both = bilinear.written(drawn, covariance, params, text, slot=slot, weight=owned)
    inputs = {path: x + both[path][0] for path, x in state.inputs.items()}
    outputs = {path: x + both[path][1] for path, x in state.outputs.items()}
    return Covariances(inputs, outputs, state.key, state.step + 1)


@functools.partial(jax.jit, static_argnames=("how", "owners"))
def add_lambdas(
    how: How, owners: int, params, batch: OwnerBatch, state: Spectrum
) -> Spectrum:
    """Add a batch of records to Lambda."""
    owned = is_owned(batch, owners)

    def slot(leaf: Any, path: str) -> Slot:
        sides = state.vectors_in[path], state.vectors_out[path]
        return Slot((*sides, over_layers(owned, leaf)), jnp.zeros(leaf.shape))

    def squares(x: Array, e: Array, held) -> Array:
        return rotated_squares(x, e, *held)

    drawn, text = with_drawn_labels(how, state), batch.text
    _, new = bilinear.written(drawn, squares, params, text, slot=slot, weight=owned)
    return state._replace(
        lambdas=optax.tree.add(state.lambdas, new),
        records=state.records + jnp.sum(owned),
        step=state.step + 1,
    )


def with_drawn_labels(how: How, state: Covariances | Spectrum) -> How:
    """Return ``how`` with labels that the model draws, anew at every step."""
    key = jax.random.fold_in(state.key, state.step)
    return how._replace(measure=functools.partial(sampled_log_likelihoods, key))


@jax.jit
def eigenbases(params, state: Covariances) -> Spectrum:
    """Return the eigenvectors of both sides of every matrix, and Lambda = 0."""
    vectors = functools.partial(jax.tree.map, lambda x: jnp.linalg.eigh(x)[1])
    return Spectrum(
        vectors_in=vectors(state.inputs),
        vectors_out=vectors(state.outputs),
        lambdas=by_matrix(params, lambda leaf: jnp.zeros(leaf.shape, jnp.float32)),
        records=jnp.float32(0.0),
        key=state.key,
        step=jnp.int32(0),
    )


@functools.partial(jax.jit, static_argnames="damping")
def apply_inverse(damping: float, params, state: Spectrum, sums: Sums) -> Sums:
    """Return H^-1 times every owner's gradient ``[L, O, D, F]``, layer by layer."""

    def of_matrix(u_in: Array, u_out: Array, squares: Array, g: Array) -> Array:
        lambdas = squares / jnp.maximum(state.records, 1.0)
        layers = {"u_in": u_in, "u_out": u_out, "lambdas": lambdas, "g": g}
        return jax.lax.map(lambda own: inverse(**own, damping=damping), layers)

    return jax.tree.map(
        of_matrix, state.vectors_in, state.vectors_out, state.lambdas, sums
    )


def ekfac(setup: Setup) -> Preconditioner:
    """Return the eigenvalue-corrected Kronecker factorisation of the Fisher matrix."""
    how = How(setup.model, bilinear.exact(), setup.cfg.reduction)

    def init(params, *, key: Array) -> Covariances:
        def side(axis: int):
            return lambda leaf: jnp.zeros((len(leaf), *[leaf.shape[axis]] * 2))

        inputs, outputs = by_matrix(params, side(1)), by_matrix(params, side(2))
        return Covariances(inputs, outputs, key, jnp.int32(0))

    def update(params, batch: OwnerBatch, state, sums: Sums):
        add = add_covariances if isinstance(state, Covariances) else add_lambdas
        return add(how, setup.owners, params, batch, state=state)

    return Preconditioner(
        init=init,
        update=update,
        apply=functools.partial(apply_inverse, setup.cfg.damping),
        axes=AXES,
        passes=2,
        advance=eigenbases,
    )


@KERNELS.register("ekfac", "influence, the Fisher matrix by EK-FAC")
def make_ekfac(setup: Setup) -> Kernel:
    """Return the influence of the owner's mean gradient (Grosse et al., 2023)."""
    base = bilinear.bilinear("ekfac", setup, bilinear.exact())
    return precondition.precondition(base, ekfac(setup))
