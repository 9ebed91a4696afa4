"""Run one stage of a seed from its newest checkpoint, or load what it left."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax

from dareu_jax import data, unlearning
from dareu_jax.config import FinetuneConfig, PriorConfig, RunConfig
from dareu_jax.models import init_decoder, join, split
from dareu_jax.models.hf.imported import open_imported
from dareu_jax.parallel import (
    Preemption,
    abstract_on,
    agreed,
    key_of,
    put_whole,
    state_axes,
)
from dareu_jax.registry import METHODS
from dareu_jax.runs.folder import log_path, stage_folder
from dareu_jax.runs.inputs import Inputs
from dareu_jax.runs.plan import Planned
from dareu_jax.runs.reward_index import Indexer, fitted_of
from dareu_jax.storage.checkpoints import Checkpoints, finished_step, read_model
from dareu_jax.training import finetune as tuning
from dareu_jax.training.guards import Guards
from dareu_jax.training.loop import Stage, StepFn, run_stage, watched
from dareu_jax.training.optimiser import make_schedule, optimiser_of
from dareu_jax.training.progress import Progress
from dareu_jax.training.throughput import Stopwatch
from dareu_jax.training.tracking import Tracker
from dareu_jax.training.work import training_work
from dareu_jax.unlearning.setting import anchors_of

Results = Mapping[str, Any]
"""Name of a stage -> its result: parameters, ``(kernel, index)``, or the prior."""
LOG_EVERY = 10
TOGETHER = 2
"""Widths of forget, and of retain batches: a method reads them in one program."""


@dataclasses.dataclass(frozen=True)
class Session:
    """Where the stages of one seed run."""

    inputs: Inputs
    tracker: Tracker
    progress: Progress = dataclasses.field(default_factory=Progress)
    preemption: Preemption = dataclasses.field(default_factory=Preemption)
    watch: Stopwatch = dataclasses.field(default_factory=Stopwatch)

    def stage(
        self, name: str, remedy: str, headline: str = "loss", every: int | None = None
    ) -> Stage:
        """Return where a stage of this seed keeps its state, and what it says."""
        inputs, checkpoint = self.inputs, self.inputs.cfg.checkpoint
        return Stage(
            name=name,
            seed=inputs.seed,
            folder=stage_folder(inputs.folder, inputs.seed, name),
            keep=checkpoint.keep,
            save_every=every or checkpoint.every,
            log_every=LOG_EVERY,
            tracker=self.tracker,
            progress=self.progress,
            headline=headline,
            remedy=remedy,
            preemption=self.preemption,
            watch=self.watch,
            keep_best=checkpoint.keep_best,
        )


def is_done(inputs: Inputs, stage: Planned) -> bool:
    """Return whether a stage has left its result, whole, in the run folder."""
    if stage.kind == "evaluation":
        path = log_path(inputs.folder, inputs.seed, stage.row)
        return agreed(path.exists())
    if is_imported(inputs.cfg, stage):
        return True
    folder = stage_folder(inputs.folder, inputs.seed, stage.label)
    return finished_step(folder) is not None


def is_imported(cfg: RunConfig, stage: Planned) -> bool:
    """Return whether a model is taken as it was imported, without training."""
    if stage.name == "original":
        return cfg.finetune.epochs == 0
    if stage.name == "base":
        return True
    return stage.name == "retrained" and cfg.retrained.path is not None


def carry_out(session: Session, stage: Planned, results: Results) -> Any:
    """Return the result of a stage; it resumes where its checkpoints stand."""
    inputs, original = session.inputs, results.get("original")
    if stage.kind == "index":
        return indexer(session, stage.name, original).built(original)
    if stage.kind == "method":
        cfg = unlearning.method_config(inputs.cfg, stage.name)
        return unlearn(session, stage.name, cfg, results)
    if stage.name == "prior":
        params = finetune(session, "prior", inputs.split.retain, "prior")
        return inputs.decoder("prior"), params
    if is_imported(inputs.cfg, stage):
        return load(inputs, stage, results)
    records = {"original": inputs.corpus.train, "retrained": inputs.split.retain}
    return finetune(session, stage.label, records[stage.name])


def result_of(session: Session, name: str, results: Results | None = None) -> Any:
    """Return the result of a model or index stage, run unless it is finished."""
    stage = Planned(name, "index" if fitted_of(name) else "model")
    if stage.kind == "model" and is_done(session.inputs, stage):
        return load(session.inputs, stage, results or {})
    return carry_out(session, stage, results or {})


def load(
    inputs: Inputs, stage: Planned, results: Results, step: int | None = None
) -> Any:
    """Return the parameters that a finished stage left; nothing is trained or written.

    ``results`` holds ``original`` for a method that trains adapters. Raises `UserError`
    where the stage's folder is missing, damaged or not finished.
    """
    cfg = inputs.cfg
    if is_imported(cfg, stage):
        if stage.name == "base":
            return inputs.before_tuning()
        if stage.name == "original":
            return inputs.base("model")
        assert cfg.retrained.path is not None
        imported = open_imported(Path(cfg.retrained.path), "retrained.path")
        inputs.check_shape(imported)
        return inputs.load(imported, inputs.model.cfg.param_dtype)
    folder = stage_folder(inputs.folder, inputs.seed, stage.label)
    trained, _ = read_model(folder, inputs.mesh, step)
    if stage.kind == "method":
        start = results.get("original") if cfg.lora else None
        return join(_frozen(start and inputs.with_adapters(start, "model")), trained)
    if stage.name == "prior":
        params = join(_frozen(inputs.start_of("prior")), trained)
        return inputs.decoder("prior"), params
    return join(_frozen(inputs.start_of("model")), trained)


def _frozen(start: Any) -> Any:
    """Return what a training that begins with ``start`` does not train."""
    return split(start)[1] if start else {}


def finetune(
    session: Session,
    label: str,
    records: tuple[data.Record, ...],
    part: Literal["finetune", "prior"] = "finetune",
) -> Any:
    """Return a decoder trained on ``records`` as the section ``part`` says."""
    inputs, is_prior = session.inputs, part == "prior"
    cfg = inputs.cfg.prior if is_prior else inputs.cfg.finetune
    where = session.stage(label, f"lower {part}.learning_rate")
    stream = inputs.stream(part, records, cfg.batch_size, passes=cfg.epochs)
    start = inputs.start_of("prior" if is_prior else "model")
    state, step_fn, steps = training(session, part, cfg, stream, start)
    if not is_prior:
        keep = tuning.snapshot_steps(steps, cfg.snapshots)
        step_fn = tuning.keeping_snapshots(
            step_fn, tuning.snapshot_folder(where.folder), keep
        )
    state, _ = run_stage(
        where, state, steps, step_fn, model_of=lambda state: state.params
    )
    return join(_frozen(start), state.params)


def training(
    session: Session,
    part: str,
    cfg: FinetuneConfig,
    stream: data.BatchStream,
    start: Any,
) -> tuple[tuning.TrainState, StepFn, int]:
    """Return a training's first state, ``(state, step) -> ...``, and its steps."""
    inputs = session.inputs
    model = inputs.decoder("prior" if part == "prior" else "model")
    steps = tuning.training_steps(cfg, stream.steps_per_epoch)
    optimiser = optimiser_of(cfg, steps)
    hide = cfg.prompt_dropout if isinstance(cfg, PriorConfig) else 0.0
    key = inputs.key(part)
    frozen = _frozen(start)

    def work(_, model, optimiser, state, frozen, batch, **how):
        return training_work(model.cfg, [batch], frozen)

    timed = session.watch.timed("update", tuning.finetune_step, work)

    def step_fn(state, step):
        batch, noise = inputs.place(stream[step]), key_of(key, step)
        return timed(
            model,
            optimiser,
            state,
            frozen,
            batch,
            prompt_dropout=hide,
            microbatch_size=cfg.microbatch_size,
            key=noise,
        )

    init = functools.partial(tuning.init_training, model, optimiser)
    if start is None:
        given = inputs.made(init_decoder, model, static=(0,), key=key)
    else:
        given = split(start)[0]
    state = inputs.made(init, given, donate=(0,), key=key)
    return state, watched(step_fn, part), steps


def indexer(session: Session, name: str, original: Any) -> Indexer:
    """Return how an index of the run is built: its reward, that shuffled, its judge."""
    inputs, cfg = session.inputs, session.inputs.cfg.reward
    is_judge, fitted = name == "judge", fitted_of(name)
    assert fitted is not None
    return Indexer(
        inputs,
        name,
        "classifier" if is_judge else cfg.kernel,
        fitted,
        where=session.stage,
        snapshots=functools.partial(snapshots, inputs, original),
        margin=inputs.forget_columns if cfg.margin and not is_judge else (),
    )


def snapshots(inputs: Inputs, original: Any) -> list[tuple[Any, float]]:
    """Return checkpoints of the original's training, each with the rates before it."""
    cfg = inputs.cfg.finetune
    per_epoch = data.steps_per_epoch(len(inputs.corpus.train), cfg.batch_size)
    steps = tuning.training_steps(cfg, per_epoch)
    rates = make_schedule(cfg.learning_rate, steps, warmup=cfg.warmup)
    trained, frozen = split(original)
    target = abstract_on(jax.eval_shape(lambda: trained), inputs.mesh)
    folder = stage_folder(inputs.folder, inputs.seed, "finetune_original")
    out, before = [], 0
    for step in tuning.snapshot_steps(steps, cfg.snapshots):
        with Checkpoints(tuning.snapshot_folder(folder) / f"at_{step}") as saved:
            found = saved.latest(target)
        if found is not None:
            eta = sum(float(rates(at)) for at in range(before, step))
            out.append((join(frozen, found[1]), eta))
        before = step
    return out


def unlearn(
    session: Session,
    row: str,
    cfg: RunConfig,
    results: Results,
    stage: str | None = None,
) -> Any:
    """Return the parameters after method ``row``."""
    method, state, step_fn = prepare(session, row, cfg, results)
    where = session.stage(
        stage or row,
        remedy=f"lower {row}'s learning_rate",
        headline=method.headline,
        every=session.inputs.cfg.checkpoint.every_iterations,
    )
    state, _ = run_stage(
        where,
        state,
        method.steps,
        step_fn,
        make_guards=lambda broken: Guards(cfg.guards, broken),
        model_of=lambda state: split(method.params_of(state))[0],
    )
    return method.params_of(state)


def prepare(
    session: Session, row: str, cfg: RunConfig, results: Results
) -> tuple[unlearning.Method, Any, StepFn]:
    """Return method ``row``, its first state and its ``(state, step) -> ...``."""
    inputs = session.inputs
    given = method_inputs(session, row, cfg, results)
    method = METHODS.get(row).make(cfg, given)
    needs = unlearning.needs_of(row, cfg)
    splits = {"forget": inputs.split.forget, "retain": inputs.split.retain}
    streams = {
        split: inputs.stream(
            f"unlearn/{split}",
            splits[split],
            need.batch_size,
            passes=method.steps * need.batches * need.batch_size / len(splits[split]),
            most=TOGETHER,
        )
        for split, need in needs.items()
    }
    key = inputs.key(f"unlearn/{row}")

    def batches(split: str, step: int) -> list[Any]:
        count = needs[split].batches
        rows = range(step * count, (step + 1) * count)
        return [inputs.place(streams[split][row]) for row in rows]

    def step_fn(state, step):
        batch = {split: batches(split, step) for split in needs}
        return method.step(state, batch, step, key=key_of(key, step))

    start = inputs.with_adapters(results["original"], "model")
    state = inputs.made(method.init, start, axes=state_axes, key=key)
    return method, state, watched(step_fn, f"method {row!r}")


def is_renamed(row: str, cfg: RunConfig) -> bool:
    """Return whether a row's anchor is asked about a stranger."""
    is_dareu = "dareu" in METHODS.get(row).sections
    return is_dareu and "renamed" in anchors_of(cfg.options("dareu").kl_anchor)


def method_inputs(
    session: Session, row: str, cfg: RunConfig, results: Results
) -> unlearning.MethodInputs:
    """Return what method ``row`` with the row's configuration ``cfg`` may read."""
    inputs, original = session.inputs, results["original"]
    start = inputs.with_adapters(original, "model")
    stages: dict[str, Any] = {}
    for name in unlearning.reads_of(row, cfg):
        if name == "prior":
            stages[name] = unlearning.Prior(*results[name])
        elif name == "base":
            stages[name] = unlearning.Prior(inputs.model, results[name])
        else:
            rebuild = indexer(session, name, original).again
            kernel, index = results[name]
            stages[name] = unlearning.RewardIndex(kernel, index, rebuild)
    labels = data.owner_labels(inputs.split.forget, inputs.corpus.owners)
    return unlearning.MethodInputs(
        model=inputs.model,
        reference=start,
        frozen=split(start)[1],
        forget_columns=inputs.forget_columns,
        forget_owner=put_whole(labels, inputs.mesh),
        response_tokens=inputs.lengths[1],
        stop_ids=inputs.tokenizer.stop_ids,
        gold_length=inputs.gold_length,
        names=put_whole(inputs.names, inputs.mesh) if is_renamed(row, cfg) else None,
        layouts=inputs.layouts,
        watch=session.watch,
        stages=stages,
        retain_records=len(inputs.split.retain),
    )
