"""Build attribution indices of a run in stages, calibrate them, build them again."""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from dareu_jax import data
from dareu_jax.attribution import Kernel, Setup, calibrated, fit_calibration, sliced
from dareu_jax.attribution.calibration import margin, spread
from dareu_jax.attribution.echo import make_kernel
from dareu_jax.attribution.finite import check_scores
from dareu_jax.attribution.index import BatchesOf, Build
from dareu_jax.config import AttributionConfig, ClassifierConfig
from dareu_jax.data.batches import over_records
from dareu_jax.runs.inputs import Inputs, parts_of
from dareu_jax.storage.checkpoints import finished_step
from dareu_jax.training.finetune import training_steps
from dareu_jax.training.loop import Stage
from dareu_jax.training.progress import counter, counting
from dareu_jax.unlearning.reward_stages import changes_of

Snapshots = Callable[[], Sequence[tuple[Any, float]]]
Where = Callable[[str, str], Stage]
"""``(stage, remedy) -> Stage``: where a stage saves and reports."""


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What a kernel that is trained, as a classifier is, trains with."""

    part: str  # of the configuration, whose decoder it has: classifier or judge
    draws: str  # the name that is folded into the seed
    shuffles: bool = False  # the owners' labels are permuted, as a control
    noise: float = 0.0  # share of the labels that are another owner's, as a control
    keeps_echo: bool = False  # it reads what a response repeats of its prompt


def fitted_of(stage: str) -> Fitted | None:
    """Return what an index of a run trains with; None: the stage is no index."""
    if stage == "judge":
        return Fitted("judge", "judge")
    changes = changes_of(stage)
    if changes is None:
        return None
    shuffles = "shuffle_owners" in changes
    return Fitted(
        "classifier",
        "classifier_shuffled" if shuffles else "classifier",
        shuffles=shuffles,
        noise=changes.get("label_noise", 0.0),
        keeps_echo="keep_echo" in changes,
    )


class Indexer:
    """One kernel over a seed's records: build its index, score with it, rebuild it.

    It works under the name ``stage``, with what ``fitted`` trains where the kernel is
    trained, and ``snapshots`` of the original's fine-tuning. ``margin`` has the columns
    of the owners whose margin is the reward; none: each has a score.
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
        count = len(owned_records(inputs, cfg))
        steps = training_steps(cfg, data.steps_per_epoch(count, cfg.batch_size))
        kernel = self.kernel = kernel_of(
            inputs,
            kernel_name,
            fitted,
            steps=steps,
            snapshots=snapshots,
            attribution=attribution,
        )
        passes = cfg.epochs if kernel.is_fitted else kernel.passes
        self.stream, self.labels = owner_stream(inputs, fitted, cfg, passes)
        self.stream.tokens = kernel.mark(self.stream.tokens)
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
        if self.kernel.note and finished_step(self.build.folder) is None:
            self.where(self.stage, "").progress.say(self.kernel.note)
        return self.as_reward(params, self.build.index(params))

    def again(self, params: Any) -> Any:
        """Return the index at other parameters, calibrated; nothing is saved."""
        with jax.transfer_guard("allow"):
            return self.as_reward(params, self.build.at(params))[1]

    def as_reward(self, params: Any, index: Any) -> tuple[Kernel, Any]:
        """Return the kernel calibrated on the owners' records, for any prefix.

        Raises:
          UserError: the score of a record is no finite number.
        """
        labels, kernel = self.labels, self._reward
        if kernel.is_probability and kernel.is_fitted:
            return self._sliced(kernel), index  # its training checked every number
        scores = self._scores(functools.partial(self._score, params, index))
        self._check(scores)
        if kernel.is_probability:
            return self._sliced(kernel), index
        if self.margin:
            others = (~np.isin(labels, self.margin)).astype(labels.dtype)
            labels = np.where(labels < 0, labels, others)
        known = labels >= 0
        calibration = fit_calibration(scores[known], labels[known])
        kernel = calibrated(kernel)
        whole = spread(kernel, self.margin) if self.margin else kernel
        return self._sliced(whole), (index, calibration)

    def _scores(self, score: Callable[..., jax.Array]) -> np.ndarray:
        """Return the scores ``[N, O]`` of all records that are indexed."""
        tokens, size = self.stream.tokens, self.stream.batch_size
        title = f"seed {self.inputs.seed} {self.stage}: scores of its records"
        progress = self.where(self.stage, "").progress
        with progress.stage(title, len(tokens.index)) as advance:
            scored = counting(score, counter(advance))
            widths = self.stream.widths
            return over_records(tokens, size, self.inputs.place, scored, widths)

    def _check(self, scores: np.ndarray) -> None:
        owners = self.inputs.corpus.owners
        if self.margin:
            owners = (", ".join(owners[at] for at in self.margin), "of all others")
        records = owned_records(self.inputs, classifier_of(self.inputs, self.fitted))
        names = [f"record {record.id!r}" for record in records]
        check_scores(self.kernel.name, scores, names, owners)

    @functools.cached_property
    def _reward(self) -> Kernel:
        """The kernel, or its margin."""
        return margin(self.kernel, self.margin) if self.margin else self.kernel

    def _sliced(self, kernel: Kernel) -> Kernel:
        """The kernel with a score for any prefix; a row may cut others."""
        slices = self.inputs.cfg.reward.slices
        return sliced(kernel, slices, self.inputs.max_new_tokens)

    @functools.cached_property
    def _score(self) -> Callable[..., jax.Array]:
        return jax.jit(self._reward.score)

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
    echo = None if fitted.keeps_echo else inputs.echo
    return make_kernel(name, setup, echo)


def owned_records(inputs: Inputs, cfg: ClassifierConfig) -> tuple[data.Record, ...]:
    """Return the records that are indexed: nobody's too, where a class is theirs."""
    train = inputs.corpus.train
    return tuple(r for r in train if cfg.nobody or r.owner != data.NOBODY)


def owner_stream(
    inputs: Inputs, fitted: Fitted, cfg: ClassifierConfig, passes: float = 1.0
) -> tuple[data.BatchStream, np.ndarray]:
    """Return batches of owned records, and nobody's where a class is theirs."""
    records = owned_records(inputs, cfg)
    stream = inputs.stream(fitted.draws, records, cfg.batch_size, passes=passes)
    assert stream.owners is not None
    labels, name = stream.owners, f"{inputs.seed}/{fitted.draws}"
    if fitted.shuffles:
        labels = drawing(name).permutation(labels)
    return stream, noisy(
        labels, fitted.noise, len(inputs.corpus.owners), drawing(f"{name}/noise")
    )


def drawing(name: str) -> np.random.Generator:
    """Return random numbers that depend on a name alone."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def noisy(
    labels: np.ndarray, share: float, owners: int, rng: np.random.Generator
) -> np.ndarray:
    """Return ``labels [N]`` of which a share is that of another owner, at random.

    Nobody's, which are negative, stay.
    """
    owned, out = np.flatnonzero(labels >= 0), labels.copy()
    chosen = rng.permutation(owned)[: round(share * len(owned)) if owners > 1 else 0]
    out[chosen] = (out[chosen] + rng.integers(1, max(owners, 2), len(chosen))) % owners
    return out
