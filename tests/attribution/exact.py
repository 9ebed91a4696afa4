"""Exact influence through the dense Hessian: what other kernels approximate.

For models of a few thousand parameters at most; no kernel, for it reads no index.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

Array = jax.Array


def influence(
    loss: Callable[[Any, Array], Array],
    params: Any,
    weights: Array,
    measure: Callable[[Any], Array],
    damping: float = 0.0,
) -> Array:
    """Return dm / dw = -J (H + damping I)^-1 d(grad L) / dw, ``[Q, N]`` (Koh, 2017).

    The derivative of each measurement at the minimum of the loss by each weight, as
    that minimum moves with the weights: J ``[Q, P]`` of the measurements, H ``[P, P]``
    of the loss, d(grad L) / dw ``[P, N]``. Positive: more of n raises measurement q.
    What leaving n out changes is ``-influence[:, n] * weights[n]`` to first order.

    Args:
      loss: ``(params, weights) -> []``, such as sum_n w_n l_n + a penalty; a weight
        may be that of one example or of all of an owner's.
      params: P numbers in a tree, a minimum of the loss at ``weights``.
      weights: ``[N]`` floats; measure: ``params -> [Q]``, such as log-likelihoods.
      damping: added to H where the minimum is not strict.
    """
    point, unravel = ravel_pytree(params)
    gradient = jax.grad(lambda point, weights: loss(unravel(point), weights))
    hessian = jax.jacfwd(gradient)(point, weights)
    moved = jax.jacfwd(gradient, argnums=1)(point, weights)
    measured = jax.jacrev(lambda point: measure(unravel(point)))(point)
    ridge = damping * jnp.eye(len(point), dtype=point.dtype)
    return -measured @ jnp.linalg.solve(hessian + ridge, moved)
