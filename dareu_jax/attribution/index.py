"""Builds an index: batches of owners, passes, resumable stages."""

import dataclasses
import functools
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dareu_jax import data
from dareu_jax.attribution.kernel import (
    Accumulator,
    Index,
    Kernel,
    OwnerBatch,
    axes_of,
    placed_index,
    shapes_on,
)
from dareu_jax.parallel import put_batch, shardings_for
from dareu_jax.storage.checkpoints import Checkpoints
from dareu_jax.training.loop import Stage, run_stage

Array = jax.Array


def build_index(
    kernel: Kernel,
    params: Any,
    batches: Iterable[OwnerBatch],
    *,
    key: Array,
    init: Callable[..., Accumulator] | None = None,
) -> Index:
    """Return the index of all owner batches, in as many passes as the kernel takes.

    Args:
      batches: gone over once for each pass, so no iterator.
      init: makes the first accumulator where it is to live; None: `Kernel.init`.
    """
    acc = (init or kernel.init)(params, key=key)
    for number in range(kernel.passes):
        acc = kernel.advance(params, acc, number) if number else acc
        for batch in batches:
            acc, _ = kernel.update(params, batch, acc)
    return kernel.finalize(params, acc)


def init_on(kernel: Kernel, mesh: Mesh, params: Any, *, key: Array) -> Accumulator:
    """Return ``kernel.init(params, key=key)`` where its axes put it on ``mesh``.

    It is made there, so that no device ever holds all of it, unless the kernel goes
    on from parameters of its own.
    """
    if kernel.goes_on():
        return placed_index(kernel, kernel.init(params, key=key), mesh)
    return _init_on(kernel, mesh, params, key)


@functools.partial(jax.jit, static_argnames=("kernel", "mesh"))
def _init_on(kernel: Kernel, mesh: Mesh, params: Any, key: Array) -> Accumulator:
    acc = kernel.init(params, key=key)
    places = shardings_for(acc, mesh, axes_of(kernel, acc))
    return jax.lax.with_sharding_constraint(acc, places)


@dataclasses.dataclass(frozen=True)
class Build:
    """How one index is built: every pass is a stage, saved and resumed by itself.

    Attributes:
      kernel: what it is for; key: of its first accumulator.
      batch: ``step -> OwnerBatch``, the same in every pass; steps: of a pass.
      mesh: where arrays live; where: ``pass number -> Stage``.
      folder: where the finished index is kept.
    """

    kernel: Kernel
    key: jax.Array
    batch: Callable[[int], OwnerBatch]
    steps: int
    mesh: Mesh
    where: Callable[[int], Stage]
    folder: Path

    def index(self, params: Any) -> Any:
        """Return the index at ``params``, from disk where it is finished."""
        with Checkpoints(self.folder, warn=self.where(0).progress.say) as saved:
            shapes = abstract_index(self.kernel, params)
            found = saved.latest(shapes_on(self.kernel, shapes, self.mesh))
            if found is not None:
                return found[1]
            index, wall = self._built(params)
            saved.save(0, index, {"done": True, "wall_s": wall})
        self._forget_passes()
        return index

    def _built(self, params: Any) -> tuple[Any, float]:
        """Return the index and the seconds that all its passes took."""
        kernel, wall = self.kernel, 0.0

        def step(acc: Any, step: int) -> tuple[Any, dict[str, Any]]:
            return kernel.update(params, self._placed(step), acc)

        acc, done = self._finished(params)
        for number in range(done, kernel.passes):
            acc = kernel.advance(params, acc, number) if number else acc
            acc, meta = run_stage(self.where(number), acc, self.steps, step)
            wall += meta["wall_s"]
        return kernel.finalize(params, acc), wall

    def at(self, params: Any) -> Any:
        """Return the index at other parameters of the model; nothing is saved."""
        return build_index(self.kernel, params, self, key=self.key, init=self._init)

    def __iter__(self) -> Iterator[OwnerBatch]:
        """Yield the batches of one pass, on the mesh."""
        return map(self._placed, range(self.steps))

    def _placed(self, step: int) -> OwnerBatch:
        return put_batch(self.batch(step), self.mesh)

    def _finished(self, params: Any) -> tuple[Any, int]:
        """Return an accumulator after the passes on disk, and how many those are.

        The last pass is left to `run_stage`, which finds it done.
        """
        kernel = self.kernel
        shapes = shapes_of(kernel, params)
        for number in reversed(range(kernel.passes - 1)):
            with self.where(number).checkpoints() as saved:
                found = saved.latest(shapes_on(kernel, shapes[number], self.mesh))
            if found and found[2]["done"]:
                return found[1], number + 1
        return self._init(params, key=self.key), 0

    @property
    def _init(self) -> Callable[..., Any]:
        return functools.partial(init_on, self.kernel, self.mesh)

    def _forget_passes(self) -> None:
        for number in range(self.kernel.passes):
            shutil.rmtree(self.where(number).folder, ignore_errors=True)

    def forget(self) -> None:
        """Delete the index and what its passes left on disk."""
        self._forget_passes()
        shutil.rmtree(self.folder, ignore_errors=True)


class BatchesOf:
    """Owner batches by step: shuffled epochs where a kernel is fitted, else one pass.

    Args:
      stream: the records; owner: ``[N]`` columns or ``[N, O]`` weights of them.
      is_fitted: whether to go on for ``steps``; else rows past the end are nobody's.
    """

    def __init__(
        self, stream: data.BatchStream, owner: np.ndarray, is_fitted: bool, steps: int
    ):
        self.stream, self.owner, self.is_fitted = stream, owner, is_fitted
        self.steps = steps if is_fitted else stream.steps_per_epoch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[OwnerBatch]:
        """Yield the batches in order."""
        return map(self, range(self.steps))

    def __call__(self, step: int) -> OwnerBatch:
        """Return the batch of one step."""
        if self.is_fitted:
            return OwnerBatch(self.stream[step], self.owner[self.stream.rows(step)])
        rows, valid = self.stream.once(step)
        owner = self.owner[rows]
        owner[valid:] = -1 if owner.ndim == 1 else 0
        return OwnerBatch(self.stream.of(rows), owner)


def shapes_of(kernel: Kernel, params: Any) -> list[Any]:
    """Return the shapes of the accumulator that each pass begins with."""

    def begun(params: Any) -> list[Any]:
        accs = [kernel.init(params, key=jax.random.key(0))]
        for number in range(1, kernel.passes):
            accs.append(kernel.advance(params, accs[-1], number))
        return accs

    return jax.eval_shape(begun, params)


def abstract_index(kernel: Kernel, params: Any) -> Any:
    """Return the shapes of the finished index."""
    return jax.eval_shape(kernel.finalize, params, shapes_of(kernel, params)[-1])
