"""The doctor's checks for any JAX model, from its ``loss_fn(params, example)``."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from dareu_jax.attribution import functional
from dareu_jax.audits.doctor import checks as checked
from dareu_jax.audits.doctor.checks import Check, Score, below, relative
from dareu_jax.audits.doctor.examine import devices_in_words
from dareu_jax.audits.doctor.output import Report
from dareu_jax.audits.doctor.subject import HIGHEST, jiggled
from dareu_jax.errors import UserError

Array = jax.Array
FEWEST = 3
"""Examples below which ranks say nothing."""
STEPS = (0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4)
"""Lengths of the finite differences, in root mean squares of the parameters."""
DIRECTIONS = 4
"""Random directions in which slopes are compared."""
SLOPE = 0.03
"""Largest relative error of a slope: float32 differences are no better."""
UNLIKE = 0.1
"""Largest distance from 1 of the correlation of projected and exact products."""
REMEDIES = {
    "finite": "look for a division by zero, or a log or root of zero, in the loss",
    "rank agreement": "give the parameters in float32, and compute in float32 with "
    "JAX_DEFAULT_MATMUL_PRECISION=highest in the environment",
    "batch": "set chunk=1, so that no gradient is computed next to others",
}
REMEDIES["relative error"] = REMEDIES["rank agreement"]


def examine_gradients(
    loss_fn: functional.LossFn,
    params: Any,
    examples: Any,
    *,
    size: int = 512,
    chunk: int | None = None,
    key: Array,
) -> Report:
    """Check the gradients that `attribution.functional` takes of a model's loss.

    The scores that are checked are `grad_dot` of every pair of examples. They are
    compared with exact float32, with one ``jax.grad`` at a time outside of ``jit`` and
    ``vmap``, with finite differences, with other batches, and with projections.

    Args:
      loss_fn: ``(params, example) -> []``; params: tree of float arrays.
      examples: tree of arrays ``[N, ...]``, N at least 3; 16 are enough.
      size: of the projection, see `projected_gradients`.
      chunk: examples that are differentiated at a time; None: all.
      key: of the random directions and of the projection.

    Raises:
      UserError: there are fewer than three examples.
    """
    if (count := len(jax.tree.leaves(examples)[0])) < FEWEST:
        raise UserError(f"examples: got {count}, give {FEWEST} or more (16 are enough)")

    def scorer(params: Any, precision: str | None = None) -> Score:
        def score(queries: Any) -> np.ndarray:
            with jax.default_matmul_precision(precision):
                found = functional.grad_dot(
                    loss_fn, params, queries, examples, chunk=chunk
                )
            return np.asarray(found)

        return score

    wide, score = optax.tree.cast(params, jnp.float32), scorer(params)
    reference, scores = scorer(wide, HIGHEST)(examples), score(examples)
    moved = scorer(jiggled(wide), HIGHEST)(examples)
    limit = checked.exact_limit(relative(moved, reference))
    native = checked.native_limit(limit, scores, reference)
    dtype = ", ".join(sorted({str(x.dtype) for x in jax.tree.leaves(params)}))
    for_slopes, for_projection = jax.random.split(key)
    projected = functools.partial(
        functional.projected_gradients, loss_fn, wide, examples, size=size, chunk=chunk
    )
    checks = [
        checked.check_finite(scores),
        check_loop(loss_fn, wide, examples, reference, limit),
        check_slopes(loss_fn, wide, examples, chunk=chunk, key=for_slopes),
        checked.check_ranks(dtype, scores, reference),
        checked.check_error(dtype, scores, reference),
        checked.check_batching(score, examples, native),
        checked.check_repeat(score, examples),
        check_projection(projected, reference, key=for_projection),
    ]
    checks = [c._replace(remedy=REMEDIES.get(c.name, c.remedy)) for c in checks]
    name, about = getattr(loss_fn, "__name__", "loss"), f"{count} examples"
    return Report(name, dtype, devices_in_words(), about, {"gradients": checks})


def check_loop(
    loss_fn: functional.LossFn,
    params: Any,
    examples: Any,
    found: np.ndarray,
    limit: float,
) -> Check:
    """Compare products of gradients ``[N, N]`` with one plain `jax.grad` at a time."""
    each = [jax.tree.map(lambda x, n=n: x[n], examples) for n in range(len(found))]
    with jax.default_matmul_precision(HIGHEST):
        flat = [ravel_pytree(jax.grad(loss_fn)(params, example))[0] for example in each]
    gradients = np.stack(flat).astype(np.float64)
    return below(
        "vmap = loop",
        relative(found, gradients @ gradients.T),
        limit,
        "change when gradients are made one at a time, without jit and vmap",
        "look in the loss for what depends on other examples or on tracing, such as "
        "batch statistics, host callbacks, or random numbers without a key",
    )


def check_slopes(
    loss_fn: functional.LossFn,
    params: Any,
    examples: Any,
    *,
    chunk: int | None,
    key: Array,
) -> Check:
    """Compare <gradient, v> with (L(params + h v) - L(params - h v)) / 2h.

    The directions v are random. The error is that of the best step h.
    """
    flat, _ = ravel_pytree(params)
    size = float(jnp.sqrt(jnp.mean(flat**2))) or 1.0

    @jax.jit
    def slopes(v: Any) -> Array:
        def of_one(example: Any) -> Array:
            return optax.tree.vdot(functional.gradient(loss_fn, params, example), v)

        return functional.mapped(of_one, examples, chunk)

    @jax.jit
    def differences(v: Any, h: Array) -> Array:
        def losses(step: Array) -> Array:
            there = jax.tree.map(lambda p, d: p + step * d, params, v)
            return functional.mapped(lambda z: loss_fn(there, z), examples, chunk)

        return (losses(h) - losses(-h)) / (2.0 * h)

    with jax.default_matmul_precision(HIGHEST):
        vs = [
            optax.tree.random_like(k, params) for k in jax.random.split(key, DIRECTIONS)
        ]
        wanted = np.stack([slopes(v) for v in vs])
        found = [
            np.stack([differences(v, jnp.float32(h * size)) for v in vs]) for h in STEPS
        ]
    seen = [each for each in found if each.any()] or found  # too small a step shows 0
    return below(
        "slope",
        min(relative(each, wanted) for each in seen),
        SLOPE,
        "error of gradients against finite differences of the loss",
        "look in the loss for stop_gradient, rounding, argmax, and custom_vjp rules",
    )


def check_projection(
    projected: Callable[..., Array], exact: np.ndarray, *, key: Array
) -> Check:
    """Compare products of projected gradients with exact ones, of unlike examples."""
    rows = np.asarray(projected(seed=jax.random.bits(key)))
    unlike = ~np.eye(len(exact), dtype=bool)
    with np.errstate(invalid="ignore", divide="ignore"):
        alike = np.corrcoef((rows @ rows.T)[unlike], exact[unlike])[0, 1]
    return below(
        "projection",
        1.0 - alike,
        UNLIKE,
        "1 - correlation of projected and exact scores",
        "keep more numbers of each leaf (size=), or use exact gradients (size=None)",
    )
