"""One resumable training loop for every stage: log, check, save, stop."""

import dataclasses
import math
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dareu_jax.errors import Preempted, TrainingError, UserError, first_line
from dareu_jax.parallel import Preemption, on_host
from dareu_jax.storage.checkpoints import Checkpoints
from dareu_jax.training.guards import Guards
from dareu_jax.training.progress import Progress
from dareu_jax.training.throughput import Lap, Stopwatch, peak_flops, rates
from dareu_jax.training.tracking import Tracker

StepFn = Callable[[Any, int], tuple[Any, dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Stage:
    """Where one stage of one seed keeps its state, and how often it reports.

    Attributes:
      name: such as ``finetune_original``; seed: of the run.
      folder: its checkpoints; keep: how many of the newest stay.
      save_every, log_every: steps.
      tracker: metrics.jsonl; progress: what the user sees.
      headline: the metric shown beside the progress bar.
      remedy: what to do when the loss is not a number.
      preemption: whether the machine is being taken away.
      watch: times the phases of a step that is logged.
      keep_best: how many checkpoints with the lowest headline stay besides.
    """

    name: str
    seed: int
    folder: Path
    keep: int
    save_every: int
    log_every: int
    tracker: Tracker
    progress: Progress
    headline: str
    remedy: str
    preemption: Preemption
    watch: Stopwatch
    keep_best: int = 0

    def checkpoints(self) -> Checkpoints:
        """Return the states on disk."""
        return Checkpoints(self.folder, self.keep, self.progress.say, self.keep_best)


def run_stage(
    stage: Stage,
    state: Any,
    steps: int,
    step_fn: StepFn,
    make_guards: Callable[[Mapping[str, int]], Guards] | None = None,
    model_of: Callable[[Any], Any] | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Run ``step_fn`` from the newest checkpoint on; return state and meta.

    Args:
      state: the initial state, also the target that a checkpoint must fit.
      step_fn: ``(state, step) -> (state, metrics)``.
      make_guards: from violations so far to guards that may stop early; every step is
        logged and has a line then.
      model_of: ``state -> parameters`` that are to be read by themselves later.

    Raises:
      TrainingError: a metric is NaN or infinite; the last checkpoint stays.
      Preempted: the machine is being taken away; the step is saved.
    """
    with stage.checkpoints() as checkpoints:
        found = checkpoints.latest(state)
        start, state, meta = found or (0, state, new_meta())
        if meta["done"]:
            return state, meta
        stage.tracker.truncate(stage.name, stage.seed, start)
        guards = make_guards(meta["broken"]) if make_guards else None
        begun, before, shown = time.monotonic(), meta["wall_s"], ""
        title = f"seed {stage.seed} {stage.name}"
        with stage.progress.stage(title, steps, start) as advance:
            for step in range(start + 1, steps + 1):
                logs = guards is not None or step % stage.log_every == 0
                timing = stage.watch.timing(logs and step > start + 1)
                with stage.tracker.step(stage.name, step, stage.seed), timing as laps:
                    state, metrics = step_fn(state, step - 1)
                taken = stage.preemption.has_come()
                save = taken or step % stage.save_every == 0 or step == steps
                if save or logs:
                    stage.tracker.throughput(stage.name, step, speeds(laps), stage.seed)
                    values = _checked(stage, step, metrics)
                    stage.tracker.log(stage.name, step, values, stage.seed)
                    shown = f"{stage.headline} {values[stage.headline]:.4f}"
                    reason = guards.check(values) if guards else None
                    meta["stopped"] = reason and f"{reason} at step {step}"
                advance(step, shown)
                if guards is not None:
                    stage.progress.tell()
                if save or meta["stopped"]:
                    _check_state(stage, step, state)
                    meta["done"] = step == steps or bool(meta["stopped"])
                    meta["broken"] = guards.broken if guards else {}
                    meta["wall_s"] = before + time.monotonic() - begun
                    model = model_of(state) if model_of else None
                    checkpoints.save(step, state, meta, values[stage.headline], model)
                if meta["stopped"]:
                    break
                if taken:
                    checkpoints.settle()
                    raise Preempted(f"{title} is saved at step {step}")
    if meta["stopped"]:
        stage.progress.say(f"{title}: stopped, {meta['stopped']}")
    return state, meta


def watched(step_fn: StepFn, name: str) -> StepFn:
    """Return ``step_fn`` as a step that copies between host and devices by name alone.

    One number that a step reads or writes in passing makes all devices wait. Where it
    copies something unasked, it raises `UserError`; ``name``: whose step it is.
    """

    def step(state: Any, step: int) -> tuple[Any, dict[str, Any]]:
        try:
            with jax.transfer_guard("disallow"):
                return step_fn(state, step)
        except jax.errors.JaxRuntimeError as error:
            if "Disallowed" not in str(error):
                raise
            raise UserError(
                f"{name}: step copies between host and device at {line_of(error)} "
                f"({first_line(error)}); compute inside jax.jit, make constants in "
                "init, and return metrics as arrays"
            ) from error

    return step


def line_of(error: BaseException) -> str:
    """Return file and line of the innermost call outside JAX that led to an error."""
    frames = traceback.extract_tb(error.__traceback__)
    jax_folder = str(Path(jax.__file__).parent)
    own = [x for x in frames if not x.filename.startswith(jax_folder)]
    return f"{own[-1].filename}, line {own[-1].lineno}"


def speeds(laps: Mapping[str, Lap]) -> dict[str, dict[str, float | None]]:
    """Return seconds, tokens a second and MFU of every phase that was timed."""
    devices, peak = jax.device_count(), peak_flops(jax.devices()[0])
    return {name: rates(lap, devices, peak) for name, lap in laps.items()}


def new_meta() -> dict[str, Any]:
    """Return what is saved beside a state that has not begun."""
    return {"done": False, "stopped": None, "broken": {}, "wall_s": 0.0}


def _check_state(stage: Stage, step: int, state: Any) -> None:
    leaves = jax.tree.leaves(state)
    floats = [x for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]
    if not (_are_finite(floats) if _is_host() else on_host(_all_finite(floats))):
        raise _broken(stage, step, "a parameter is no number")


def _is_host() -> bool:
    """Return whether all arrays are in this process's own memory."""
    return jax.default_backend() == "cpu" and jax.process_count() == 1


def _are_finite(arrays: list[jax.Array]) -> bool:
    """Return whether every number is finite; no program is compiled for it."""
    shards = (shard for x in arrays for shard in x.addressable_shards)
    return all(np.isfinite(x.data).all() for x in shards if x.replica_id == 0)


@jax.jit
def _all_finite(arrays: list[jax.Array]) -> jax.Array:
    """Return whether every number is finite, bool ``[]``, where the arrays are."""
    return jnp.all(jnp.asarray([jnp.isfinite(x).all() for x in arrays], bool))


def _checked(stage: Stage, step: int, metrics: Mapping[str, Any]) -> dict[str, float]:
    values = {name: float(x) for name, x in on_host(dict(metrics)).items()}
    for name, value in values.items():
        if not math.isfinite(value):
            raise _broken(stage, step, f"{name} is {value}")
    return values


def _broken(stage: Stage, step: int, what: str) -> TrainingError:
    return TrainingError(
        f"seed {stage.seed} {stage.name}: {what} at step {step}; the last good "
        f"checkpoint in {stage.folder} is kept; {stage.remedy}"
    )
