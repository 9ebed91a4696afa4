"""Self-influence |g_b|^2 of every example, without its gradient where that is cheaper.

|sum_t x_t^T e_t|^2 = sum_(t, t') <x_t, x_t'> <e_t, e_t'>: two Gram matrices of T x T in
place of one gradient of D x F, the ghost norm (Goodfellow, 2015; Li et al., 2022).
"""

from typing import Any

import jax
import jax.numpy as jnp

from dareu_jax.attribution.gradients.probe import over_rows

Array = jax.Array


def ghost_is_cheaper(t: int, d: int, f: int) -> bool:
    """Return whether T^2 (D + F) < (T + 1) D F: Gram matrices cost less than g_b."""
    return t * t * (d + f) < (t + 1) * d * f


def ghost_norms(x: Array, e: Array) -> Array:
    """Return |g_b|^2 ``[B]`` from Gram matrices of ``x [B, T, D]``, ``e [B, T, F]``."""
    inputs, errors = (
        jnp.einsum("btd,bsd->bts", side, side, preferred_element_type=jnp.float32)
        for side in (x, e)
    )
    return jnp.sum(inputs * errors, axis=(1, 2))


def formed_norms(x: Array, e: Array) -> Array:
    """Return |g_b|^2 ``[B]`` from the gradients themselves, a few rows at a time."""

    def add(total: Array, own: Array, start: Any) -> Array:
        return total + jnp.sum(own**2, axis=(1, 2))

    return over_rows(x, e, add, jnp.zeros(len(x), jnp.float32))


def square_norms(x: Array, e: Array, held: Any) -> Array:
    """Return, as a contraction of the probe, |g_b|^2 ``[B]``, by the cheaper way."""
    cheaper = ghost_is_cheaper(x.shape[1], x.shape[2], e.shape[2])
    return ghost_norms(x, e) if cheaper else formed_norms(x, e)
