"""Kernel `trak`: phi(q)^T (Phi^T Phi + lambda I)^-1 phi(n) (1 - p_n).

phi is the projected gradient of the log-odds of the response, one block per matrix and
layer, p_n the mean probability of a record's tokens (Park et al., 2023).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from pydantic import Field

from dareu_jax.attribution.gradients import bilinear, precondition
from dareu_jax.attribution.gradients.bilinear import How, by_matrix
from dareu_jax.attribution.gradients.measures import log_odds, mean_probability
from dareu_jax.attribution.gradients.precondition import Preconditioner, Sums
from dareu_jax.attribution.gradients.probe import Slot, example_gradients
from dareu_jax.attribution.kernel import Kernel, OwnerBatch, Setup, is_owned, options_of
from dareu_jax.config import Section
from dareu_jax.models import Decoder
from dareu_jax.registry import KERNELS

Array = jax.Array


class Gram(NamedTuple):
    """Phi^T Phi of every matrix and layer ``[L, K, K]`` over ``records``."""

    gram: dict[str, Array]
    records: Array
    seed: Array


@bilinear.contraction
def outer(x: Array, e: Array, weight: Array) -> Array:
    """Contract to sum_b w_b f_b f_b^T, ``[K, K]``."""
    flat = example_gradients(x, e).reshape(len(x), -1)
    return jnp.einsum("b,bk,bj->kj", weight, flat, flat)


@functools.partial(jax.jit, static_argnames=("how", "owners"))
def add_gram(
    how: How, owners: int, params: Any, batch: OwnerBatch, state: Gram, sums: Sums
) -> Gram:
    """Add phi phi^T of a batch of records."""
    owned = is_owned(batch, owners)
    arrays = bilinear.held_for(how.features, params, state.seed)

    def slot(leaf: Any, path: str) -> Slot:
        held = arrays[path], bilinear.over_layers(owned, leaf)
        return Slot(held, jnp.zeros(state.gram[path].shape, jnp.float32))

    contract = outer(how.features)
    _, added = bilinear.written(how, contract, params, batch.text, slot=slot)
    gram = optax.tree.add(state.gram, added)
    return Gram(gram, state.records + jnp.sum(owned), state.seed)


@functools.partial(jax.jit, static_argnames="damping")
def solve_gram(damping: float, params: Any, state: Gram, sums: Sums) -> Sums:
    """Return (Phi^T Phi / N + lambda I)^-1 sums ``[L, O, k, k]``, lambda relative."""

    def solve(pair: tuple[Array, Array]) -> Array:
        gram, owners = pair
        ridge = damping * jnp.trace(gram) / len(gram) + 1e-12
        flat = owners.reshape(len(owners), -1)
        whole = gram + ridge * jnp.eye(len(gram))
        solved = jax.scipy.linalg.solve(whole, flat.T, assume_a="pos")
        return solved.T.reshape(owners.shape)

    count = jnp.maximum(state.records, 1.0)
    return {
        path: jax.lax.map(solve, (state.gram[path] / count, own))
        for path, own in sums.items()
    }


def doubt(model: Decoder, params: Any, batch) -> Array:
    """Return 1 - p_n ``[B]``, p_n the mean probability of the response's tokens."""
    return 1.0 - mean_probability(model, params, batch)


class TrakOptions(Section):
    """The section ``attribution.trak``."""

    size: int = Field(8, ge=1)  # k a side, whose Gram matrix has k^4 numbers


@KERNELS.register(
    "trak",
    "projected log-odds gradients through their Gram matrix",
    options=TrakOptions,
)
def make_trak(setup: Setup) -> Kernel:
    """Return TRAK on one model (Park et al., 2023); `ensemble` averages several."""
    own: TrakOptions = options_of(setup, "trak")
    features = bilinear.projected(own.size)

    def init(params, *, key: Array) -> Gram:
        def zeros(leaf: Array) -> Array:
            d, f = features.shape(*leaf.shape[1:])
            return jnp.zeros((len(leaf), d * f, d * f), jnp.float32)

        seed = jnp.uint32(setup.cfg.projection_seed)
        return Gram(by_matrix(params, zeros), jnp.float32(0.0), seed)

    how = How(setup.model, features, setup.cfg.reduction, log_odds)
    fit = Preconditioner(
        init=init,
        update=functools.partial(add_gram, how, setup.owners),
        apply=functools.partial(solve_gram, setup.cfg.damping),
        axes={},
    )
    base = bilinear.bilinear("trak", setup, features, measure=log_odds, emphasis=doubt)
    return precondition.precondition(base, fit)
