"""Run down the plan of every seed, then put the results together.

Nothing that is done is done again; of a finished run nothing is even loaded.
"""

import functools
import itertools
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax

import dareu_jax
from dareu_jax.config import RunConfig, dump_config
from dareu_jax.data import Corpus, adopt
from dareu_jax.evaluation.run_suite import RunSuite
from dareu_jax.evaluation.seeds import summarise
from dareu_jax.models import abstract_adapters, abstract_params, parameters
from dareu_jax.parallel import Preemption, first_then_others, give_back, is_first
from dareu_jax.runs import folder as run_folder
from dareu_jax.runs.checks import check
from dareu_jax.runs.evaluate import evaluate, suite_of, tow_of
from dareu_jax.runs.inputs import Inputs
from dareu_jax.runs.plan import Planned, outstanding, plan
from dareu_jax.runs.stages import Session, carry_out, is_done, load
from dareu_jax.runs.validity import check_validity, validity_of
from dareu_jax.storage.checkpoints import newest_meta
from dareu_jax.storage.files import write_json, write_text
from dareu_jax.storage.programs import programs_in
from dareu_jax.training.progress import Progress
from dareu_jax.training.tracking import Tracker


class Outcome(NamedTuple):
    """What ``results.json`` holds, and the first seed's forget records with answers."""

    results: dict[str, Any]
    answers: list[dict[str, Any]]


def run(
    cfg: RunConfig,
    folder: Path,
    progress: Progress | None = None,
    preemption: Preemption | None = None,
    traced: tuple[int, int] | None = None,
) -> Outcome:
    """Do all that is not yet done in ``folder``.

    ``traced``: first and last step of every stage to keep a profile of. Raises
    `UserError` for bad input or another run's folder, and `Preempted`.
    """
    progress, preemption = progress or Progress(), preemption or Preemption()
    corpus: Corpus | None = None
    if not first_then_others(lambda: run_folder.claimed(cfg, folder)):
        corpus = begin(cfg, folder, progress)
    seeds = [Inputs(cfg, seed, folder) for seed in cfg.seeds]
    did_something = False
    kept = folder / run_folder.PROGRAMS if cfg.compilation_cache == "run" else None
    with Tracker(folder, traced) as tracker, programs_in(kept):
        for inputs in seeds:
            corpus = inputs.use(corpus)
            run_folder.check_corpus(corpus, folder)
            did_something |= run_seed(Session(inputs, tracker, progress, preemption))
    before = results_before(folder / run_folder.RESULTS)
    if before is not None and not did_something:
        return Outcome(before, answers_of(seeds[0]))
    results = results_of(seeds)
    if before is not None and {**results, "wall_s": before.get("wall_s")} == before:
        results = before  # nothing but times differs
    write_json(folder / run_folder.RESULTS, results)
    return Outcome(results, answers_of(seeds[0]))


def begin(cfg: RunConfig, folder: Path, progress: Progress) -> Corpus:
    """Check the whole input, then write what a run folder begins with."""
    with tempfile.TemporaryDirectory() as trial:
        corpus = check(cfg, Path(trial), progress)
        if is_first():
            adopt(Path(trial) / "data", folder / "data")
    write_text(folder / run_folder.CORPUS, corpus.fingerprint + "\n")
    write_text(folder / run_folder.CONFIG, dump_config(cfg))
    return corpus


def run_seed(session: Session) -> bool:
    """Go through the stages of a seed that are to do; return whether there are any."""
    inputs, stages = session.inputs, plan(session.inputs.cfg)
    todo = outstanding(stages, functools.partial(is_done, inputs))
    results: dict[str, Any] = {}
    suite: RunSuite | None = None
    is_checked = False
    with jax.set_mesh(inputs.mesh):
        for stage in (stage for stage in stages if stage.name in todo):
            if stage.kind == "method" and not is_checked:
                check_validity(inputs, session.progress)
                is_checked = True
            if stage.kind == "evaluation":
                suite = suite or suite_of(session, results)
                evaluate(session, suite, stage.row, results[stage.row])
            elif todo[stage.name] or stage.kind == "index":
                results[stage.name] = carry_out(session, stage, results)
            else:
                results[stage.name] = load(inputs, stage, results)
            results = needed_after(stage, stages, todo, results)
            give_back()
    return bool(todo)


def needed_after(
    stage: Planned,
    stages: tuple[Planned, ...],
    todo: dict[str, bool],
    results: dict[str, Any],
) -> dict[str, Any]:
    """Return the results that a later stage still reads; memory of the rest is free."""
    rest = stages[stages.index(stage) + 1 :]
    read = {name for later in rest if later.name in todo for name in later.reads}
    return {name: result for name, result in results.items() if name in read}


def results_of(seeds: list[Inputs]) -> dict[str, Any]:
    """Return what ``results.json`` holds, from the logs of every seed."""
    cfg, per_seed = seeds[0].cfg, {str(one.seed): judged(one) for one in seeds}
    walls: dict[str, float] = {}
    stopped: dict[str, dict[str, Any]] = {seed: {} for seed in per_seed}
    for inputs, stage in itertools.product(seeds, plan(cfg)):
        about = about_stage(inputs, stage)
        if "wall_s" in about:
            wall = about["wall_s"] / len(seeds)
            walls[stage.label] = walls.get(stage.label, 0.0) + wall
        if stage.kind == "method":
            stopped[str(inputs.seed)][stage.name] = about.get("stopped")
    withdrawn = f"{len(cfg.corpus.forget)} owner(s) withdrawn, "
    return {
        "scale": scale_of(seeds[0], withdrawn),
        **summarise(per_seed),
        "seeds": per_seed,
        "stopped": stopped,
        "wall_s": {label: round(wall, 2) for label, wall in walls.items()},
        "environment": environment(),
    }


def about_stage(inputs: Inputs, stage: Planned) -> dict[str, Any]:
    """Return how long a finished stage took and why it stopped early, if it did."""
    folder, seed = inputs.folder, inputs.seed
    if stage.kind == "evaluation":
        return {"wall_s": run_folder.read_log(folder, seed, stage.row)["wall_s"]}
    return newest_meta(run_folder.stage_folder(folder, seed, stage.label))


def judged(inputs: Inputs) -> dict[str, Any]:
    """Return what ``results.json`` says of a seed, from its logs.

    ``{"models": {row: {metric: value}}, "tow": ..., "classifiers": ...,
    "validity": ...}``.
    """
    logs = logs_of(inputs)
    models = {
        row: {metric: values["agg_value"] for metric, values in log["metrics"].items()}
        for row, log in logs.items()
    }
    oracle = models.get("retrained")
    tows = {row: tow_of(own, oracle) for row, own in models.items()} if oracle else {}
    classifiers = logs["original"]["classifiers"]
    valid = validity_of(inputs)
    return {
        "models": models,
        "tow": tows,
        "classifiers": classifiers,
        "validity": valid and valid._asdict(),
    }


def logs_of(inputs: Inputs) -> dict[str, Any]:
    """Return the evaluation of every row of a seed."""
    rows = run_folder.rows_of(inputs.cfg)
    return {row: run_folder.read_log(inputs.folder, inputs.seed, row) for row in rows}


def answers_of(inputs: Inputs) -> list[dict[str, Any]]:
    """Return the forget records of a seed with every row's answer to them."""
    logs = logs_of(inputs)
    said = {row: log["answers"]["forget"] for row, log in logs.items()}
    return [
        {
            "prompt": record.prompt,
            "gold": record.response,
            "owner": record.owner,
            "answers": {row: texts[at] for row, texts in said.items()},
        }
        for at, record in enumerate(inputs.split.forget)
    ]


def scale_of(inputs: Inputs, also: str = "") -> str:
    """Return the sentence that says how small it is, ``also`` what else it has."""
    cfg, corpus = inputs.cfg, inputs.corpus
    seeds = f"{len(cfg.seeds)} seed" + "s" * (len(cfg.seeds) > 1)
    origin = "imported" if inputs.imported else "trained from scratch"
    facts = (
        f"{parameter_count(inputs) / 1e6:.1f} M parameters {origin}, "
        f"{len(corpus.owners)} owners, {len(corpus.train)} records, {also}{seeds}."
    )
    return f"{cfg.scale} {facts}".strip()


def parameter_count(inputs: Inputs) -> int:
    """Return how many numbers the original has, its adapters included."""
    cfg, count = inputs.cfg, parameters(inputs.model.cfg)
    if cfg.lora is None or cfg.model.path is None or cfg.finetune.epochs == 0:
        return count
    shapes = abstract_params(inputs.model.cfg)
    adapters = abstract_adapters(shapes, cfg.lora.rank, cfg.lora.targets)
    return count + sum(leaf.size for leaf in jax.tree.leaves(adapters))


def environment() -> dict[str, Any]:
    """Return versions and devices that the numbers depend on."""
    return {
        "dareu_jax": dareu_jax.__version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "cpu_cores": os.cpu_count(),
    }


def results_before(path: Path) -> dict[str, Any] | None:
    """Return the results in a file; None where there are none that can be read."""
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return before if isinstance(before, dict) else None
