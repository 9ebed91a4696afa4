"""The stages of one seed of a run, each saved, each resumable, run when asked for."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dareu_jax import corpus as owned
from dareu_jax.attribution import Kernel
from dareu_jax.checkpoints import Checkpoints
from dareu_jax.config import FinetuneConfig, OptimiserConfig, PriorConfig, RunConfig
from dareu_jax.errors import Preempted, UserError
from dareu_jax.imported import open_imported
from dareu_jax.indexing import (
    Indexer,
    placed,
    snapshot_folder,
    snapshot_steps,
    training_steps,
)
from dareu_jax.inputs import Inputs
from dareu_jax.loop import Stage, StepFn, run_stage, watched
from dareu_jax.models import Decoder, join, split
from dareu_jax.models.optimiser import make_optimiser, make_schedule
from dareu_jax.parallel import Preemption, Stopwatch, key_of, state_axes
from dareu_jax.registry import METHODS
from dareu_jax.reporting.progress import Progress
from dareu_jax.tracking import Tracker
from dareu_jax.unlearning import (
    Method,
    MethodInputs,
    Prior,
    RewardIndex,
    TrainState,
    finetune_step,
    init_training,
    method_config,
    needs_of,
    reads_of,
    training_work,
)
from dareu_jax.unlearning.guards import Guards

Array = jax.Array
LOG_EVERY = 10


class Run(Inputs):
    """One seed of one configuration in one folder; a stage runs when first asked for.

    Args:
      cfg: the configuration; seed: one of its seeds.
      folder: the run folder; tracker, progress: where news goes.
      preemption: whether the machine is being taken away; none: nobody says so.
    """

    def __init__(
        self,
        cfg: RunConfig,
        seed: int,
        folder: Path,
        tracker: Tracker,
        progress: Progress,
        preemption: Preemption | None = None,
    ):
        super().__init__(cfg, seed, folder)
        self.tracker, self.progress = tracker, progress
        self.preemption = preemption or Preemption()
        self.watch = Stopwatch()
        self.stopped: dict[str, str | None] = {}
        self.wall_s: dict[str, float] = {}

    @functools.cached_property
    def original(self) -> Any:
        """Parameters fine-tuned on all owners, or imported as they are."""
        if self.cfg.finetune.epochs == 0:
            return self.base("model")
        return self.finetune("finetune_original", self.corpus.train)

    @property
    def oracles(self) -> tuple[str, ...]:
        """Rows of the table that no unlearning method makes."""
        return ("original",) if self.cfg.retrained.skip else ("original", "retrained")

    @functools.cached_property
    def retrained(self) -> Any:
        """Parameters fine-tuned on the retain owners: same seed, same recipe."""
        path = self.cfg.retrained.path
        if path is not None:
            imported = open_imported(Path(path), "retrained.path")
            self.check_shape(imported)
            return self.load(imported, self.model.cfg.param_dtype)
        return self.finetune("finetune_retrained", self.split.retain)

    @functools.cached_property
    def start(self) -> Any:
        """What an unlearning method begins with: the original and its adapters."""
        return self.with_adapters(self.original, "model")

    def finetune(self, stage: str, records: tuple[owned.Record, ...]) -> Any:
        """Trains the decoder on ``records``, from ``model.path`` or the seed."""
        cfg, start = self.cfg.finetune, self.start_of("model")
        return self._train_lm(stage, "finetune", self.model, cfg, records, start)

    def snapshots(self) -> list[tuple[Any, float]]:
        """Checkpoints of the original's fine-tuning, each with the rates before it."""
        cfg, whole = self.cfg.finetune, self.original
        stream = self.stream("finetune", self.corpus.train, cfg.batch_size)
        steps = training_steps(cfg, stream)
        rates = make_schedule(cfg.learning_rate, steps, warmup=cfg.warmup)
        trained, frozen = split(whole)
        folder, out, before = self.stage("finetune_original", "", "").folder, [], 0
        for step in snapshot_steps(steps, cfg.snapshots):
            own = snapshot_folder(folder) / f"at_{step}"
            with Checkpoints(own, warn=self.progress.say) as saved:
                found = saved.latest(placed(jax.eval_shape(lambda: trained), self.mesh))
            if found is not None:
                eta = sum(float(rates(at)) for at in range(before, step))
                out.append((join(frozen, found[1]), eta))
            before = step
        return out

    @functools.cached_property
    def prior(self) -> tuple[Decoder, Any]:
        """The counterfactual prior: a small decoder of the retain owners alone."""
        model, start = self.decoder("prior"), self.start_of("prior")
        cfg, records = self.cfg.prior, self.split.retain
        return model, self._train_lm("prior", "prior", model, cfg, records, start)

    def _train_lm(
        self,
        stage: str,
        name: str,
        model: Decoder,
        cfg: FinetuneConfig,
        records: tuple[owned.Record, ...],
        start: Any,
    ) -> Any:
        stream = self.stream(name, records, cfg.batch_size, cfg.group_by_length)
        state, step_fn, steps = self.training(name, model, cfg, stream, start)
        where = self.stage(stage, "loss", f"lower {name}.learning_rate")
        keep = snapshot_steps(steps, cfg.snapshots) if name == "finetune" else []
        keeping = keeping_snapshots(step_fn, snapshot_folder(where.folder), keep)
        state, meta = run_stage(where, state, steps, keeping)
        self.wall_s[stage] = meta["wall_s"]
        return join({} if start is None else split(start)[1], state.params)

    def training(
        self,
        name: str,
        model: Decoder,
        cfg: FinetuneConfig,
        stream: owned.BatchStream,
        start: Any,
    ) -> tuple[TrainState, StepFn, int]:
        """The first state of a training, ``(state, step) -> ...``, and its steps."""
        steps = training_steps(cfg, stream)
        optimiser = optimiser_of(cfg, steps)
        hide = cfg.prompt_dropout if isinstance(cfg, PriorConfig) else 0.0
        key = self.key(name)
        frozen = {} if start is None else split(start)[1]

        def work(_, model, optimiser, state, frozen, batch, **how):
            return training_work(model.cfg, [batch], frozen)

        timed = self.watch.timed("update", finetune_step, work)

        def step_fn(state, step):
            batch, noise = self.place(stream[step]), key_of(key, step)
            return timed(
                model, optimiser, state, frozen, batch, prompt_dropout=hide, key=noise
            )

        def init(key: Array, given: Any) -> TrainState:
            return init_training(model, optimiser, given, key=key)

        given = None if start is None else split(start)[0]
        return self.made(init, key, given, donate=(1,)), watched(step_fn, name), steps

    @functools.cached_property
    def classifier(self) -> tuple[Kernel, Any]:
        """The attribution kernel that serves as reward, and its index."""
        return self.indexer.built()

    @functools.cached_property
    def indexer(self) -> Indexer:
        """How the reward's index is built."""
        return self.reward_indexer("classifier")

    @functools.cached_property
    def shuffled_indexer(self) -> Indexer:
        """The control: the same kernel built on shuffled owner labels."""
        return self.reward_indexer("classifier_shuffled")

    def reward_indexer(self, stage: str) -> Indexer:
        """An indexer of the reward's kernel, as ``cfg.reward`` has it."""
        cfg = self.cfg.reward
        columns = self.forget_columns if cfg.margin else ()
        return Indexer(self, stage, cfg.kernel, margin=columns)

    @functools.cached_property
    def shuffled(self) -> tuple[Kernel, Any]:
        """The control's kernel and index."""
        return self.shuffled_indexer.built()

    @property
    def forget_columns(self) -> tuple[int, ...]:
        """Columns of the owners that withdraw."""
        owners = self.corpus.owners
        return tuple(owners.index(owner) for owner in self.cfg.corpus.forget)

    @functools.cached_property
    def judge(self) -> tuple[Kernel, Any]:
        """An independent classifier, never used as a reward."""
        return Indexer(self, "judge", "classifier").built()

    @functools.cached_property
    def gold_length(self) -> float:
        """Mean tokens of the forget records' own responses."""
        gold = self.tokens(self.split.forget).response_mask
        return float(gold.sum() / len(gold))

    def method_inputs(self, name: str, cfg: RunConfig) -> MethodInputs:
        """What method ``name`` with configuration ``cfg`` reads."""
        owners = self.corpus.owners
        return MethodInputs(
            model=self.model,
            reference=self.start,
            forget_columns=self.forget_columns,
            forget_owner=jnp.asarray(owned.owner_labels(self.split.forget, owners)),
            response_tokens=self.lengths[1],
            stop_ids=self.tokenizer.stop_ids,
            gold_length=self.gold_length,
            stages={stage: self.result(stage) for stage in reads_of(name, cfg)},
            frozen=split(self.start)[1],
            layouts=self.layouts,
            watch=self.watch,
        )

    def result(self, stage: str) -> Any:
        """What a stage leaves for the methods that read it."""
        if stage == "prior":
            return Prior(*self.prior)
        if stage == "reward_shuffled":
            return RewardIndex(*self.shuffled, self.shuffled_indexer.again)
        return RewardIndex(*self.classifier, self.indexer.again)

    def unlearned(self, name: str) -> Any:
        """Parameters after method ``name``."""
        return self.unlearn(name, method_config(self.cfg, name), name)

    def prepare(self, name: str, cfg: RunConfig) -> tuple[Method, Any, StepFn]:
        """Returns method ``name``, its first state and ``(state, step) -> ...``."""
        check_forget_batch(self, name, cfg)
        method = METHODS.get(name).make(cfg, self.method_inputs(name, cfg))
        needs = needs_of(name, cfg)
        splits = {"forget": self.split.forget, "retain": self.split.retain}
        streams = {
            split: self.stream(f"unlearn/{split}", splits[split], need.batch_size)
            for split, need in needs.items()
        }
        key = self.key(f"unlearn/{name}")

        def step_fn(state, step):
            batch = {
                split: [
                    self.place(streams[split][step * need.batches + i])
                    for i in range(need.batches)
                ]
                for split, need in needs.items()
            }
            return method.step(state, batch, step, key=key_of(key, step))

        def init(key: Array, start: Any) -> Any:
            return method.init(start, key=key)

        state = self.made(init, key, self.start, axes=state_axes)
        return method, state, watched(step_fn, f"method {name!r}")

    def unlearn(self, name: str, cfg: RunConfig, stage: str) -> Any:
        """Runs method ``name`` with configuration ``cfg`` as stage ``stage``."""
        method, state, step_fn = self.prepare(name, cfg)
        every = self.cfg.checkpoint.every_iterations
        remedy = f"lower {name}'s learning_rate"
        where = self.stage(stage, method.headline, remedy, every)
        state, meta = run_stage(
            where,
            state,
            method.steps,
            step_fn,
            lambda broken: Guards(cfg.guards, broken),
        )
        self.wall_s[stage] = meta["wall_s"]
        self.stopped[stage] = meta["stopped"]
        return method.params_of(state)

    def unlearned_at(self, name: str, step: int) -> Any:
        """Parameters of method ``name`` at a step that is on disk, not its last.

        Raises:
          UserError: that step is not there.
        """
        method, state, _ = self.prepare(name, method_config(self.cfg, name))
        folder = self.stage(name, method.headline, "").folder
        with Checkpoints(folder, warn=self.progress.say) as saved:
            return method.params_of(saved.at(step, state)[1])

    def model_params(self, name: str) -> Any:
        """Parameters of a row of the table."""
        if name in self.oracles:
            return getattr(self, name)
        return self.unlearned(name)

    def stage(
        self, name: str, headline: str, remedy: str, every: int | None = None
    ) -> Stage:
        """Where stage ``name`` of this seed keeps its state, and what it says."""
        return Stage(
            name=name,
            seed=self.seed,
            folder=self.folder / "checkpoints" / f"seed_{self.seed}" / name,
            keep=self.cfg.checkpoint.keep,
            save_every=every or self.cfg.checkpoint.every,
            log_every=LOG_EVERY,
            tracker=self.tracker,
            progress=self.progress,
            headline=headline,
            remedy=remedy,
            preemption=self.preemption,
            watch=self.watch,
            keep_best=self.cfg.checkpoint.keep_best,
        )

    def place_or_stop(self, batch: Any) -> Any:
        """`place`, for work of which nothing is kept before its end.

        Raises:
          Preempted: the machine is being taken away.
        """
        if self.preemption.has_come():
            raise Preempted("what was finished is saved")
        return self.place(batch)


def keeping_snapshots(step_fn: StepFn, folder: Path, steps: list[int]) -> StepFn:
    """``step_fn`` that also writes the trained parameters after each of ``steps``."""

    def keeping(state, step):
        state, metrics = step_fn(state, step)
        if step + 1 in steps:
            with Checkpoints(folder / f"at_{step + 1}") as saved:
                saved.save(0, state.params, {})
        return state, metrics

    return keeping


def optimiser_of(cfg: OptimiserConfig, steps: int):
    """The optimiser of a fine-tuning stage."""
    return make_optimiser(
        cfg.learning_rate,
        steps,
        warmup=cfg.warmup,
        weight_decay=cfg.weight_decay,
        clip_norm=cfg.clip_norm,
    )


def check_forget_batch(run: Run, name: str, cfg: RunConfig) -> None:
    """Raises `UserError` when the forget records cannot fill one batch."""
    need = needs_of(name, cfg)["forget"]
    have = len(run.split.forget)
    if have < need.batch_size:
        raise UserError(
            f"forget owners {', '.join(cfg.corpus.forget)} have {have} records but a "
            f"batch takes {need.key} = {need.batch_size}; lower it to at most {have}"
        )
