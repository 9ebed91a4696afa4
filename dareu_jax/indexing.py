"""Attribution indices of a run: built in stages, calibrated, made again as asked."""

import functools
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from dareu_jax import corpus as owned
from dareu_jax.attribution import (
    Kernel,
    OwnerBatch,
    Setup,
    build_index,
    calibrated,
    fit_calibration,
    sliced,
)
from dareu_jax.checkpoints import Checkpoints
from dareu_jax.config import ClassifierConfig, OptimiserConfig
from dareu_jax.evaluation.evaluate import over_records
from dareu_jax.loop import run_stage
from dareu_jax.parallel import shardings_for
from dareu_jax.registry import KERNELS
from dareu_jax.reinforcement import segment_length

if TYPE_CHECKING:
    from dareu_jax.stages import Run


class Indexer:
    """One kernel of one seed: how its index is built, and built again.

    Args:
      run: the seed; stage: such as ``classifier``, ``judge``.
      kernel_name: as registered.
    """

    def __init__(self, run: "Run", stage: str, kernel_name: str):
        self.run, self.stage = run, stage
        part = "judge" if stage == "judge" else "classifier"
        cfg = run.cfg.evaluation.judge if part == "judge" else run.cfg.classifier
        self.stream, self.labels = owner_stream(run, stage, cfg)
        self.steps = training_steps(cfg, self.stream)
        setup = Setup(
            model=run.model,
            owners=len(run.corpus.owners),
            cfg=run.cfg.attribution,
            classifier=cfg,
            steps=self.steps,
            backbone=run.decoder(part),
            start=functools.partial(run.start_of, part),
            snapshots=run.snapshots,
        )
        self.kernel: Kernel = KERNELS.get(kernel_name)(setup)
        self._batches = (
            [] if self.kernel.is_fitted else in_order(self.stream, self.labels)
        )

    def built(self) -> tuple[Kernel, Any]:
        """The kernel as a reward and its index, from disk where that is there."""
        kernel, params = self.kernel, self.run.original
        acc, done = self._finished()
        for number in range(done, kernel.passes):
            acc = kernel.advance(params, acc, number) if number else acc
            acc = self._pass(acc, number)
            if number:
                shutil.rmtree(self._where(number - 1).folder, ignore_errors=True)
        return self.as_reward(params, kernel.finalize(params, acc))

    def again(self, params: Any) -> Any:
        """The index at other parameters of the model, calibrated; nothing is saved."""
        place = self.run.place
        batches = [place(batch) for batch in self._batches]
        key = self.run.key(self.stage)
        return self.as_reward(
            params, build_index(self.kernel, params, batches, key=key)
        )[1]

    def as_reward(self, params: Any, index: Any) -> tuple[Kernel, Any]:
        """The kernel calibrated on the owners' records, with a score for any prefix."""
        run = self.run
        longest = run.cfg.dareu.max_new_tokens or run.lengths[1]
        kernel = sliced(self.kernel, segment_length(longest, run.cfg.reward.slices))
        if kernel.is_probability:
            return kernel, index
        score = functools.partial(jax.jit(kernel.score), params, index)
        size = self.stream.batch_size
        scores = over_records(self.stream.tokens, size, run.place, score)
        known = self.labels >= 0
        calibration = fit_calibration(scores[known], self.labels[known])
        return calibrated(kernel), (index, calibration)

    def _pass(self, acc: Any, number: int) -> Any:
        """Pass ``number`` over the records as a stage of the run."""

        def step_fn(acc, step):
            if self._batches:
                batch = self._batches[step]
            else:
                labels = self.labels[self.stream.rows(step)]
                batch = OwnerBatch(self.stream[step], labels)
            return self.kernel.update(self.run.original, self.run.place(batch), acc)

        where = self._where(number)
        acc, meta = run_stage(where, acc, len(self._batches) or self.steps, step_fn)
        walls, stage = self.run.wall_s, self.stage
        walls[stage] = walls.get(stage, 0.0) + meta["wall_s"]
        return acc

    def _where(self, number: int):
        passes = self.kernel.passes
        name = self.stage if passes == 1 else f"{self.stage}_pass_{number + 1}"
        return self.run.stage(name, "loss", "lower the classifier's learning_rate")

    def _finished(self) -> tuple[Any, int]:
        """An accumulator after as many passes as are on disk, and how many those are.

        The last pass is left to `run_stage`, which finds it done.
        """
        kernel, params = self.kernel, self.run.original
        init = functools.partial(kernel.init, key=self.run.key(self.stage))
        shapes, found = [jax.eval_shape(init, params)], []
        for number in range(1, kernel.passes):
            shapes.append(next_shape(kernel, params, shapes[-1], number))
        for number in range(kernel.passes - 1):
            where = self._where(number)
            with Checkpoints(where.folder, warn=where.progress.say) as saved:
                found.append(saved.latest(placed(shapes[number], self.run.mesh)))
        for number in reversed(range(kernel.passes - 1)):
            state = found[number]
            if state and state[2]["done"]:
                return state[1], number + 1
        return self.run._shard(init(params)), 0


def next_shape(kernel: Kernel, params: Any, acc: Any, number: int) -> Any:
    """Shapes of the accumulator that pass ``number`` begins with."""
    return jax.eval_shape(lambda p, a: kernel.advance(p, a, number), params, acc)


def placed(abstract: Any, mesh: Any) -> Any:
    """Shapes with the places that the sharding rules give them on ``mesh``."""

    def at(leaf: Any, to: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to)

    return jax.tree.map(at, abstract, shardings_for(abstract, mesh))


def owner_stream(
    run: "Run", stage: str, cfg: ClassifierConfig
) -> tuple[owned.BatchStream, np.ndarray]:
    """Batches of owned records (and nobody's, where a class is theirs)."""
    records = tuple(
        r for r in run.corpus.train if cfg.nobody or r.owner != owned.NOBODY
    )
    stream = run.stream(stage, records, cfg.batch_size)
    assert stream.owners is not None
    if not stage.endswith("_shuffled"):
        return stream, stream.owners
    shuffle = np.random.default_rng(zlib.crc32(f"{run.seed}/{stage}".encode()))
    return stream, shuffle.permutation(stream.owners)


def in_order(stream: owned.BatchStream, labels: np.ndarray) -> Sequence[OwnerBatch]:
    """One pass over a stream's records; rows past the end are nobody's."""
    place = np.arange(stream.batch_size)
    return [
        OwnerBatch(batch, np.where(place < valid, labels[batch.index], -1))
        for batch, valid in owned.sequential(stream.tokens, stream.batch_size)
    ]


def training_steps(cfg: OptimiserConfig, stream: owned.BatchStream) -> int:
    """Steps that make ``cfg.epochs`` passes over the stream's records."""
    return max(1, round(cfg.epochs * stream.steps_per_epoch))


def snapshot_steps(steps: int, count: int) -> list[int]:
    """Steps after which to keep a checkpoint: ``count`` at even distances."""
    return sorted({round(steps * (n + 1) / count) for n in range(count)} - {0})


def snapshot_folder(folder: Path) -> Path:
    """Where the checkpoints of a fine-tuning in ``folder`` are kept for `tracin`."""
    return folder.with_name(folder.name + "_snapshots")
