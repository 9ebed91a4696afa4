"""H^-1 before the dot product: the owners' gradients are preconditioned once.

s(q, o) = <g_q, H^-1 G_o>. Applied to the index alone, so that a query costs what it
costs without; a cosine would need H^-1/2 on both sides, so `cosine` refuses the result.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dareu_jax.attribution.gradients.bilinear import AXES, BilinearKernel, GradientIndex
from dareu_jax.attribution.kernel import AxisNames, Kernel, OwnerBatch, by_field
from dareu_jax.data.batches import TokenBatch

Array = jax.Array
Sums = dict[str, Array]


class Preconditioner(NamedTuple):
    """H^-1, fitted to records in passes and applied to gradients of owners.

    Attributes:
      init: ``(params, *, key) -> state``.
      update: ``(params, batch: OwnerBatch, state, sums) -> state``; ``sums`` are the
        owners' gradients, whole from the second pass on.
      apply: ``(params, state, sums) -> sums`` times H^-1.
      axes: names of the axes of the state's arrays, by field; see `by_field`.
      passes: over the records; advance: ``(params, state) -> state`` between two.
      is_shared: whether `apply` treats each owner's gradient alike, so that owners
        can come and go while H stays.
    """

    init: Callable[..., Any]
    update: Callable[[Any, OwnerBatch, Any, Sums], Any]
    apply: Callable[[Any, Any, Sums], Sums]
    axes: Mapping[str, AxisNames]
    passes: int = 1
    advance: Callable[[Any, Any], Any] = lambda params, state: state
    is_shared: bool = True


class Gathering(NamedTuple):
    """The first pass: the owners' gradients and the preconditioner's state."""

    base: GradientIndex
    fitted: Any


class Fitting(Gathering):
    """A later pass: the owners' gradients are whole."""


class Preconditioned(Gathering):
    """An index whose owners' gradients are multiplied by H^-1, and H^-1."""


def precondition(kernel: BilinearKernel, fit: Preconditioner) -> Kernel:
    """Return the kernel with H^-1 on the owners' side."""

    def init(params, *, key: Array) -> Gathering:
        return Gathering(kernel.init(params, key=key), fit.init(params, key=key))

    def update(params, batch: OwnerBatch, acc):
        base, metrics = acc.base, {"loss": jnp.float32(0.0)}
        if not isinstance(acc, Fitting):
            base, metrics = kernel.update(params, batch, base)
        if isinstance(acc, Preconditioned):
            return acc._replace(base=base), metrics
        fitted = fit.update(params, batch, acc.fitted, acc.base.owner_sums)
        return type(acc)(base, fitted), metrics

    def finalize(params, acc) -> Preconditioned:
        sums = fit.apply(params, acc.fitted, acc.base.owner_sums)
        base = kernel.finalize(params, acc.base._replace(owner_sums=sums))
        return Preconditioned(base, acc.fitted)

    def score(params, index: Preconditioned, queries: TokenBatch) -> Array:
        return kernel.score(params, index.base, queries)

    def fold(params, index: Preconditioned, weights: Array, queries: TokenBatch):
        assert kernel.fold is not None
        return kernel.fold(params, index.base, weights, queries)

    def advance(params, acc: Gathering, number: int) -> Fitting:
        return Fitting(acc.base, fit.advance(params, acc.fitted))

    return Kernel(
        name=kernel.name,
        owners=kernel.owners,
        init=init,
        update=update,
        score=score,
        finalize=finalize,
        passes=fit.passes,
        advance=advance,
        axes=by_field({**AXES, **fit.axes}),
        adds_up=fit.is_shared,
        fold=fold if kernel.fold else None,
        differentiates=kernel.differentiates,
        follows_model=True,
    )
