"""Kernels over several models: `ensemble`, and `tracin` over checkpoints."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from dareu_jax.attribution.kernel import Kernel, OwnerBatch, Setup, axes_of, read_once
from dareu_jax.attribution.kernels.gradient_dot import on_gradients
from dareu_jax.data.batches import TokenBatch
from dareu_jax.errors import UserError
from dareu_jax.parallel import table_axes
from dareu_jax.registry import KERNELS

Array = jax.Array


class Member(NamedTuple):
    """The index of one model of an ensemble, and that model's parameters."""

    params: Any
    index: Any


def ensemble(
    kernel: Kernel, members: Callable[[], Sequence[tuple[Any, float]]]
) -> Kernel:
    """Return sum_c w_c s_c: the kernel at each member's own parameters, those alone.

    Args:
      kernel: what each member scores with.
      members: returns ``(parameters, weight)`` of each; it is called when the kernel is
        first built or used.
    """
    members = read_once(members)

    def init(params, *, key: Array) -> list[Any]:
        return [kernel.init(own, key=key) for own, _ in members()]

    def over_members(step, accs: Sequence[Any]) -> list[Any]:
        return [step(own, acc) for (own, _), acc in zip(members(), accs, strict=True)]

    def unwrapped(acc: Any) -> list[Any]:
        return [x.index if isinstance(x, Member) else x for x in acc]

    def update(params, batch: OwnerBatch, acc):
        own = unwrapped(acc)
        done = over_members(lambda own, one: kernel.update(own, batch, one), own)
        return [one for one, _ in done], done[-1][1]

    def finalize(params, acc) -> list[Member]:
        done = over_members(kernel.finalize, unwrapped(acc))
        pairs = zip(members(), done, strict=True)
        return [Member(params=own, index=index) for (own, _), index in pairs]

    def score(params, index: Sequence[Member], queries: TokenBatch) -> Array:
        return sum(  # type: ignore[return-value]
            weight * kernel.score(own.params, own.index, queries)
            for (_, weight), own in zip(members(), index, strict=True)
        )

    def axes(tree: Sequence[Any]) -> list[Any]:
        return list(map(of_member, tree))

    def of_member(own: Any) -> Any:
        if isinstance(own, Member):
            return Member(table_axes(own.params), axes_of(kernel, own.index))
        return axes_of(kernel, own)

    def advance(params, acc, number: int) -> list[Any]:
        return over_members(lambda own, one: kernel.advance(own, one, number), acc)

    return Kernel(
        name=kernel.name,
        owners=kernel.owners,
        init=init,
        update=update,
        score=score,
        finalize=finalize,
        passes=kernel.passes,
        advance=advance,
        axes=axes,
        adds_up=kernel.is_additive,
        differentiates=kernel.differentiates,
        note=kernel.note,
        reads_snapshots=True,
    )


@KERNELS.register("tracin", "grad_dot summed over checkpoints, by learning rate")
def make_tracin(setup: Setup) -> Kernel:
    """Return TracInCP: sum_c eta_c <g_q, G_o> at checkpoints c (Pruthi et al., 2020).

    Its functions raise `UserError` where the fine-tuning kept no checkpoints.
    """

    def members() -> Sequence[tuple[Any, float]]:
        if found := setup.snapshots():
            return found
        raise UserError(
            "kernel tracin reads checkpoints of the fine-tuning, and none were kept; "
            "set finetune.snapshots to 4 or so"
        )

    return ensemble(on_gradients("tracin", setup), members)
