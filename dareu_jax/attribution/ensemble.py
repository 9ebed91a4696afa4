"""Kernels over several models: `ensemble`, and `tracin` over checkpoints."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from dareu_jax.attribution.bilinear import bilinear, exact
from dareu_jax.attribution.kernel import Kernel, OwnerBatch, Setup
from dareu_jax.corpus.batches import TokenBatch
from dareu_jax.errors import UserError
from dareu_jax.registry import KERNELS

Array = jax.Array


class Member(NamedTuple):
    """The index of one model of an ensemble, and that model's parameters."""

    params: Any
    index: Any


def ensemble(kernel: Kernel, members: Sequence[tuple[Any, float]]) -> Kernel:
    """sum_c w_c s_c: the kernel at each member's own parameters.

    The parameters that its functions are given are not read.

    Args:
      kernel: what each member scores with; members: ``(parameters, weight)``.
    """
    models, weights = [m[0] for m in members], [m[1] for m in members]

    def init(params, *, key: Array) -> list[Any]:
        return [kernel.init(own, key=key) for own in models]

    def over_members(step, accs: Sequence[Any]) -> list[Any]:
        return [step(own, acc) for own, acc in zip(models, accs, strict=True)]

    def unwrapped(acc: Any) -> list[Any]:
        return [x.index if isinstance(x, Member) else x for x in acc]

    def update(params, batch: OwnerBatch, acc):
        done = over_members(
            lambda own, one: kernel.update(own, batch, one), unwrapped(acc)
        )
        return [one for one, _ in done], done[-1][1]

    def finalize(params, acc) -> list[Member]:
        done = over_members(kernel.finalize, unwrapped(acc))
        return [Member(*pair) for pair in zip(models, done, strict=True)]

    def score(params, index: Sequence[Member], queries: TokenBatch) -> Array:
        return sum(  # type: ignore[return-value]
            weight * kernel.score(own.params, own.index, queries)
            for weight, own in zip(weights, index, strict=True)
        )

    def owner_axes(index: Sequence[Member]) -> list[Member]:
        assert kernel.owner_axes is not None
        return [
            Member(jax.tree.map(lambda _: -1, own.params), kernel.owner_axes(own.index))
            for own in index
        ]

    return Kernel(
        name=kernel.name,
        owners=kernel.owners,
        init=init,
        update=update,
        score=score,
        finalize=finalize,
        passes=kernel.passes,
        advance=lambda params, acc, number: over_members(
            lambda own, one: kernel.advance(own, one, number), acc
        ),
        owner_axes=owner_axes if kernel.owner_axes else None,
        names_copies=kernel.names_copies,
        is_gram=kernel.is_gram and min(weights) > 0.0,
    )


@KERNELS.register("tracin", "grad_dot summed over checkpoints, by learning rate")
def make_tracin(setup: Setup) -> Kernel:
    """TracInCP: sum_c eta_c <g_q, G_o> at checkpoints c (Pruthi et al., 2020).

    Raises:
      UserError: the fine-tuning kept no checkpoints.
    """
    members = setup.snapshots()
    if not members:
        raise UserError(
            "kernel tracin reads checkpoints of the fine-tuning, and none were kept; "
            "set finetune.snapshots to 4 or so"
        )
    return ensemble(bilinear("tracin", setup, exact()), members)
