"""Build attribution indices of a run in stages, calibrate them, build them again."""

import dataclasses
import functools
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

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
from dareu_jax.attribution.kernel import axes_of
from dareu_jax.attribution.linear import margin, spread
from dareu_jax.checkpoints import Checkpoints
from dareu_jax.config import AttributionConfig, ClassifierConfig, OptimiserConfig
from dareu_jax.evaluation.evaluate import over_records
from dareu_jax.loop import Stage, StepFn, run_stage
from dareu_jax.parallel import abstract_on, put_batch
from dareu_jax.registry import KERNELS
from dareu_jax.reinforcement import segment_length
from dareu_jax.runs.inputs import Inputs, parts_of

Snapshots = Callable[[], Sequence[tuple[Any, float]]]
Where = Callable[[str, str], Stage]
"""``(stage, remedy) -> Stage``: where a stage saves and reports."""


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
            shape = self._shape(params)
            axes = axes_of(self.kernel, shape)
            found = saved.latest(abstract_on(shape, self.mesh, axes))
            if found is not None:
                return found[1]
            index, wall = self._built(params)
            saved.save(0, index, {"done": True, "wall_s": wall})
        self._forget_passes()
        return index

    def _shape(self, params: Any) -> Any:
        """Return the shapes of the finished index."""
        kernel = self.kernel
        return jax.eval_shape(kernel.finalize, params, shapes_of(kernel, params)[-1])

    def _built(self, params: Any) -> tuple[Any, float]:
        """Return the index and the seconds that all its passes took."""
        kernel, wall = self.kernel, 0.0
        acc, done = self._finished(params)
        for number in range(done, kernel.passes):
            acc = kernel.advance(params, acc, number) if number else acc
            acc, meta = run_stage(
                self.where(number), acc, self.steps, self._step(params)
            )
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

    def _step(self, params: Any) -> StepFn:
        def step_fn(acc: Any, step: int):
            return self.kernel.update(params, self._placed(step), acc)

        return step_fn

    def _finished(self, params: Any) -> tuple[Any, int]:
        """Return an accumulator after the passes on disk, and how many those are.

        The last pass is left to `run_stage`, which finds it done.
        """
        kernel = self.kernel
        shapes = shapes_of(kernel, params)
        for number in reversed(range(kernel.passes - 1)):
            where = self.where(number)
            with Checkpoints(where.folder, warn=where.progress.say) as saved:
                axes = axes_of(kernel, shapes[number])
                found = saved.latest(abstract_on(shapes[number], self.mesh, axes))
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


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What a kernel that is trained, as a classifier is, trains with.

    Attributes:
      part: of the configuration, ``classifier`` or ``judge``, whose decoder it has.
      shuffles: whether the owners' labels are permuted, as a control.
      draws: the name that is folded into the seed.
    """

    part: str
    draws: str
    shuffles: bool = False


class Indexer:
    """One kernel over a seed's records: build its index, score with it, rebuild it.

    Args:
      inputs: of the seed; stage: the name of its checkpoints and log lines.
      kernel_name: as registered; fitted: what is trained, where the kernel is.
      where: ``(stage, remedy) -> Stage``; snapshots: of the original's fine-tuning.
      attribution: options of kernels, none: the run's.
      margin: columns of the owners whose margin is the reward; none: each has a score.
    """

    def __init__(
        self,
        inputs: Inputs,
        stage: str,
        kernel_name: str,
        fitted: Fitted,
        *,
        where: Where,
        snapshots: Snapshots = tuple,
        attribution: AttributionConfig | None = None,
        margin: tuple[int, ...] = (),
    ):
        self.inputs, self.stage, self.margin = inputs, stage, margin
        self.fitted, self.where = fitted, where
        cfg = classifier_of(inputs, fitted)
        self.stream, self.labels = owner_stream(inputs, fitted, cfg)
        steps = training_steps(cfg, self.stream)
        kernel = self.kernel = kernel_of(
            inputs,
            kernel_name,
            fitted,
            steps=steps,
            snapshots=snapshots,
            attribution=attribution,
        )
        batches = BatchesOf(self.stream, self.labels, kernel.is_fitted, steps)
        self.build = Build(
            kernel=kernel,
            key=inputs.key(fitted.draws),
            batch=batches,
            steps=len(batches),
            mesh=inputs.mesh,
            where=self._where,
            folder=where(stage, "").folder,
        )

    def built(self, params: Any) -> tuple[Kernel, Any]:
        """Return the kernel as a reward and its index at the original's ``params``."""
        return self.as_reward(params, self.build.index(params))

    def again(self, params: Any) -> Any:
        """Return the index at other parameters, calibrated; nothing is saved."""
        with jax.transfer_guard("allow"):
            return self.as_reward(params, self.build.at(params))[1]

    def as_reward(self, params: Any, index: Any) -> tuple[Kernel, Any]:
        """Return the kernel calibrated on the owners' records, for any prefix."""
        labels, kernel = self.labels, self._sliced
        if kernel.is_probability:
            return kernel, index
        score = functools.partial(self._score, params, index)
        size = self.stream.batch_size
        scores = over_records(self.stream.tokens, size, self.inputs.place, score)
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
        kernel = margin(self.kernel, self.margin) if self.margin else self.kernel
        slices = self.inputs.cfg.reward.slices
        return sliced(kernel, segment_length(self.inputs.max_new_tokens, slices))

    @functools.cached_property
    def _score(self) -> Callable[..., jax.Array]:
        return jax.jit(self._sliced.score)

    def _where(self, number: int) -> Stage:
        """Return the stage of a pass; its folder is gone when the index is finished."""
        passes, stage = self.kernel.passes, self.where(self.stage, self._remedy)
        name = self.stage if passes == 1 else f"{self.stage}_pass_{number + 1}"
        folder = stage.folder.with_name(f"{self.stage}_pass_{number + 1}")
        return dataclasses.replace(stage, name=name, folder=folder)

    @property
    def _remedy(self) -> str:
        """What to do when a number of the index is not finite."""
        if self.kernel.is_fitted:
            part = parts_of(self.inputs.cfg)[self.fitted.part]
            return f"lower {part.prefix}learning_rate"
        name = self.kernel.name
        return f"lower finetune.learning_rate, or take another kernel than {name}"


def classifier_of(inputs: Inputs, fitted: Fitted) -> ClassifierConfig:
    """Return the options of the classifier that a fitted kernel trains."""
    cfg = inputs.cfg
    return cfg.evaluation.judge if fitted.part == "judge" else cfg.classifier


def kernel_of(
    inputs: Inputs,
    name: str,
    fitted: Fitted,
    *,
    steps: int = 1,
    snapshots: Snapshots = tuple,
    attribution: AttributionConfig | None = None,
) -> Kernel:
    """Return a kernel over a seed's owners; nothing is read or trained for it."""
    setup = Setup(
        model=inputs.model,
        owners=len(inputs.corpus.owners),
        cfg=attribution or inputs.cfg.attribution,
        classifier=classifier_of(inputs, fitted),
        steps=steps,
        backbone=inputs.decoder(fitted.part),
        start=functools.partial(inputs.start_of, fitted.part),
        snapshots=snapshots,
    )
    return KERNELS.get(name)(setup)


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
        """Return the batch of one step."""
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
    """Return the shapes of the accumulator that each pass begins with."""
    init = functools.partial(kernel.init, key=jax.random.key(0))
    shapes = [jax.eval_shape(init, params)]
    for number in range(1, kernel.passes):
        advance = functools.partial(_advanced, kernel, number)
        shapes.append(jax.eval_shape(advance, params, shapes[-1]))
    return shapes


def _advanced(kernel: Kernel, number: int, params: Any, acc: Any) -> Any:
    return kernel.advance(params, acc, number)


def owner_stream(
    inputs: Inputs, fitted: Fitted, cfg: ClassifierConfig
) -> tuple[owned.BatchStream, np.ndarray]:
    """Return batches of owned records, and nobody's where a class is theirs."""
    records = tuple(
        r for r in inputs.corpus.train if cfg.nobody or r.owner != owned.NOBODY
    )
    stream = inputs.stream(fitted.draws, records, cfg.batch_size)
    assert stream.owners is not None
    if not fitted.shuffles:
        return stream, stream.owners
    seed = zlib.crc32(f"{inputs.seed}/{fitted.draws}".encode())
    return stream, np.random.default_rng(seed).permutation(stream.owners)


def training_steps(cfg: OptimiserConfig, stream: owned.BatchStream) -> int:
    """Return the steps that make ``cfg.epochs`` passes over the stream's records."""
    return max(1, round(cfg.epochs * stream.steps_per_epoch))


def snapshot_steps(steps: int, count: int) -> list[int]:
    """Return the steps after which to keep a checkpoint, at even distances."""
    return sorted({round(steps * (n + 1) / count) for n in range(count)} - {0})


def snapshot_folder(folder: Path) -> Path:
    """Return where a fine-tuning in ``folder`` keeps its checkpoints for `tracin`."""
    return folder.with_name(folder.name + "_snapshots")
