"""Attribution indices of a run: built in stages, calibrated, made again as asked."""

import dataclasses
import functools
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh

from dareu_jax import corpus as owned
from dareu_jax.attribution import (
    Kernel,
    OwnerBatch,
    Setup,
    build_index,
    calibrated,
    fit_calibration,
    init_on,
    sliced,
)
from dareu_jax.attribution.kernel import shapes_on
from dareu_jax.attribution.linear import margin, spread
from dareu_jax.checkpoints import Checkpoints
from dareu_jax.config import AttributionConfig, ClassifierConfig, OptimiserConfig
from dareu_jax.evaluation.evaluate import over_records
from dareu_jax.loop import Stage, StepFn, run_stage
from dareu_jax.parallel import abstract_on, put_batch
from dareu_jax.registry import KERNELS
from dareu_jax.reinforcement import segment_length

if TYPE_CHECKING:
    from dareu_jax.stages import Run


@dataclasses.dataclass(frozen=True)
class Build:
    """How one index is built: every pass is a stage, saved and resumed by itself.

    Attributes:
      kernel: what it is for; key: of its first accumulator.
      batch: ``step -> OwnerBatch``, the same in every pass; steps: of a pass.
      mesh: where arrays live; where: ``pass number -> Stage``.
    """

    kernel: Kernel
    key: jax.Array
    batch: Callable[[int], OwnerBatch]
    steps: int
    mesh: Mesh
    where: Callable[[int], Stage]

    def index(self, params: Any, count_s: Callable[[float], Any] = float) -> Any:
        """The index at ``params``; ``count_s`` is told the seconds of each pass."""
        kernel = self.kernel
        acc, done = self._finished(params)
        for number in range(done, kernel.passes):
            acc = kernel.advance(params, acc, number) if number else acc
            acc, meta = run_stage(
                self.where(number), acc, self.steps, self._step(params)
            )
            count_s(meta["wall_s"])
            if number:
                shutil.rmtree(self.where(number - 1).folder, ignore_errors=True)
        return kernel.finalize(params, acc)

    def at(self, params: Any) -> Any:
        """The index at other parameters of the model; nothing is saved."""
        return build_index(self.kernel, params, self, key=self.key, init=self._init)

    def __iter__(self) -> Iterator[OwnerBatch]:
        """The batches of one pass, on the mesh."""
        return map(self._placed, range(self.steps))

    def _placed(self, step: int) -> OwnerBatch:
        return put_batch(self.batch(step), self.mesh)

    def _step(self, params: Any) -> StepFn:
        def step_fn(acc: Any, step: int):
            return self.kernel.update(params, self._placed(step), acc)

        return step_fn

    def _finished(self, params: Any) -> tuple[Any, int]:
        """An accumulator after as many passes as are on disk, and how many those are.

        The last pass is left to `run_stage`, which finds it done.
        """
        kernel = self.kernel
        shapes = shapes_of(kernel, params)
        for number in reversed(range(kernel.passes - 1)):
            where = self.where(number)
            with Checkpoints(where.folder, warn=where.progress.say) as saved:
                found = saved.latest(shapes_on(kernel, shapes[number], self.mesh))
            if found and found[2]["done"]:
                return found[1], number + 1
        return self._init(params, key=self.key), 0

    @property
    def _init(self) -> Callable[..., Any]:
        return functools.partial(init_on, self.kernel, self.mesh)

    def forget(self) -> None:
        """Deletes what the passes left on disk."""
        for number in range(self.kernel.passes):
            shutil.rmtree(self.where(number).folder, ignore_errors=True)


class Indexer:
    """One kernel of one seed: how its index is built, and built again.

    Args:
      run: the seed; stage: such as ``classifier``, ``judge``.
      kernel_name: as registered; attribution: its options, none: the run's.
      margin: columns of the owners whose margin is the reward; none: each has a score.
    """

    def __init__(
        self,
        run: "Run",
        stage: str,
        kernel_name: str,
        attribution: AttributionConfig | None = None,
        margin: tuple[int, ...] = (),
    ):
        self.run, self.stage, self.margin = run, stage, margin
        part = "judge" if stage == "judge" else "classifier"
        cfg = run.cfg.evaluation.judge if part == "judge" else run.cfg.classifier
        self.stream, self.labels = owner_stream(run, stage, cfg)
        steps = training_steps(cfg, self.stream)
        setup = Setup(
            model=run.model,
            owners=len(run.corpus.owners),
            cfg=attribution or run.cfg.attribution,
            classifier=cfg,
            steps=steps,
            backbone=run.decoder(part),
            start=functools.partial(run.start_of, part),
            snapshots=run.snapshots,
        )
        kernel = self.kernel = KERNELS.get(kernel_name)(setup)
        batches = BatchesOf(self.stream, self.labels, kernel.is_fitted, steps)
        self.build = Build(
            kernel, run.key(stage), batches, len(batches), run.mesh, self._where
        )

    def built(self) -> tuple[Kernel, Any]:
        """The kernel as a reward and its index, from disk where that is there."""
        return self.as_reward(self.run.original, self.index())

    def index(self) -> Any:
        """The kernel's own index, in its own units, from disk where that is there."""
        walls, stage = self.run.wall_s, self.stage
        walls[stage] = 0.0

        def count(seconds: float) -> None:
            walls[stage] += seconds

        return self.build.index(self.run.original, count)

    def again(self, params: Any) -> Any:
        """The index at other parameters of the model, calibrated; nothing is saved."""
        with jax.transfer_guard("allow"):
            return self.as_reward(params, self.build.at(params))[1]

    def as_reward(self, params: Any, index: Any) -> tuple[Kernel, Any]:
        """The kernel calibrated on the owners' records, with a score for any prefix."""
        run, labels, kernel = self.run, self.labels, self._sliced
        if kernel.is_probability:
            return kernel, index
        score = functools.partial(self._score, params, index)
        size = self.stream.batch_size
        scores = over_records(self.stream.tokens, size, run.place, score)
        if self.margin:
            others = (~np.isin(labels, self.margin)).astype(labels.dtype)
            labels = np.where(labels < 0, labels, others)
        known = labels >= 0
        calibration = fit_calibration(scores[known], labels[known])
        kernel = calibrated(kernel)
        whole = spread(kernel, self.margin) if self.margin else kernel
        return whole, (index, calibration)

    @functools.cached_property
    def _sliced(self) -> Kernel:
        """The kernel, or its margin, with a score for any prefix."""
        cfg = self.run.cfg
        kernel = margin(self.kernel, self.margin) if self.margin else self.kernel
        longest = cfg.options("dareu").max_new_tokens or self.run.lengths[1]
        return sliced(kernel, segment_length(longest, cfg.reward.slices))

    @functools.cached_property
    def _score(self) -> Callable[..., jax.Array]:
        return jax.jit(self._sliced.score)

    def _where(self, number: int) -> Stage:
        passes = self.kernel.passes
        name = self.stage if passes == 1 else f"{self.stage}_pass_{number + 1}"
        return self.run.stage(name, "loss", "lower the classifier's learning_rate")


class BatchesOf:
    """Owner batches by step: shuffled epochs where a kernel is fitted, else one pass.

    Args:
      stream: the records; owner: ``[N]`` columns or ``[N, O]`` weights of them.
      is_fitted: whether to go on for ``steps``; else rows past the end are nobody's.
    """

    def __init__(
        self, stream: owned.BatchStream, owner: np.ndarray, is_fitted: bool, steps: int
    ):
        self.stream, self.owner, self.is_fitted = stream, owner, is_fitted
        self.steps = steps if is_fitted else stream.steps_per_epoch

    def __len__(self) -> int:
        return self.steps

    def __call__(self, step: int) -> OwnerBatch:
        """The batch of one step."""
        if self.is_fitted:
            return OwnerBatch(self.stream[step], self.owner[self.stream.rows(step)])
        size, count = self.stream.batch_size, len(self.owner)
        places = np.arange(step * size, (step + 1) * size)
        rows = places % count
        nobody = -1 if self.owner.ndim == 1 else 0.0
        past = (places >= count).reshape(-1, *[1] * (self.owner.ndim - 1))
        owner = np.where(past, nobody, self.owner[rows]).astype(self.owner.dtype)
        return OwnerBatch(owned.take(self.stream.tokens, rows), owner)


def shapes_of(kernel: Kernel, params: Any) -> list[Any]:
    """Shapes of the accumulator that each pass begins with."""
    init = functools.partial(kernel.init, key=jax.random.key(0))
    shapes = [jax.eval_shape(init, params)]
    for number in range(1, kernel.passes):
        advance = functools.partial(_advanced, kernel, number)
        shapes.append(jax.eval_shape(advance, params, shapes[-1]))
    return shapes


def _advanced(kernel: Kernel, number: int, params: Any, acc: Any) -> Any:
    return kernel.advance(params, acc, number)


def placed(abstract: Any, mesh: Any) -> Any:
    """Shapes with the places that the sharding rules give them on ``mesh``."""
    return abstract_on(abstract, mesh)


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


def training_steps(cfg: OptimiserConfig, stream: owned.BatchStream) -> int:
    """Steps that make ``cfg.epochs`` passes over the stream's records."""
    return max(1, round(cfg.epochs * stream.steps_per_epoch))


def snapshot_steps(steps: int, count: int) -> list[int]:
    """Steps after which to keep a checkpoint: ``count`` at even distances."""
    return sorted({round(steps * (n + 1) / count) for n in range(count)} - {0})


def snapshot_folder(folder: Path) -> Path:
    """Where the checkpoints of a fine-tuning in ``folder`` are kept for `tracin`."""
    return folder.with_name(folder.name + "_snapshots")
