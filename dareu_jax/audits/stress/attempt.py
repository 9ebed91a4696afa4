"""`dareu stress`: every test on the models of a finished run, each kept when done."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from dareu_jax.audits.stress.broken import broken, caveat_of
from dareu_jax.audits.stress.context import (
    ROLES,
    Context,
    Stressed,
    StressTest,
    check_finite,
)
from dareu_jax.audits.stress.plot import plots
from dareu_jax.audits.stress.report import Page, render
from dareu_jax.config import RunConfig, with_overrides
from dareu_jax.config.load import parse_value
from dareu_jax.errors import UserError
from dareu_jax.parallel import Preemption, agreed, is_first
from dareu_jax.registry import STRESS
from dareu_jax.runs.evaluate import suite_of
from dareu_jax.runs.folder import (
    UNLEARNED,
    check_corpus,
    finished,
    oracles_of,
    row_of,
    seed_of,
)
from dareu_jax.runs.load import check_indices, opened, params_of
from dareu_jax.runs.stages import Session, indexer
from dareu_jax.storage.files import write_json, write_whole
from dareu_jax.training.progress import Progress
from dareu_jax.training.tracking import Tracker

FOLDER, PLOTS, SHOWN = "stress", "plots.png", "answers.json"
INDICES = ("reward", "judge")
ANSWERS = 20
"""Forget questions whose answers the report shows, the first ones."""


def stress(
    folder: Path,
    progress: Progress,
    tests: Sequence[str] = (),
    model: str = UNLEARNED,
    seed: int | None = None,
    overrides: Iterable[str] = (),
    preemption: Preemption | None = None,
) -> Stressed:
    """Tries to bring back what a model of a finished run has unlearned.

    What is on disk with the same settings is not run again.

    Args:
      tests: of `STRESS`, none: all; model: a row of the run's table, or
        ``unlearned`` for its first method.
      seed: one of the run's, none: the first; overrides: ``stress.key=value``.

    Raises:
      UserError: no finished run, no such test, model, seed or setting, or a model
        whose outputs are no numbers.
      Preempted: the machine is being taken away; the same call continues.
    """
    chosen = [STRESS.get(name) for name in tests or STRESS.names()]
    cfg, results = finished(folder)
    cfg = with_stress(cfg, overrides)
    name = row_of(folder, cfg, results["models"], model)
    seed = seed_of(folder, cfg, seed)
    place = folder / FOLDER / name / f"seed_{seed}"
    kept, shown = agreed(on_disk(place, cfg) if is_first() else ({}, None))
    todo = [test for test in chosen if test.name not in kept]
    if todo or shown is None:
        with Tracker(folder / FOLDER) as tracker:
            inputs = opened(cfg, seed, folder)
            run = Session(inputs, tracker, progress, preemption or Preemption())
            check_corpus(inputs.corpus, folder)
            with jax.set_mesh(inputs.mesh):
                judged = results["seeds"][str(seed)]["models"]
                with progress.stage(f"seed {seed} models and answers", 1):
                    context = context_of(run, name, judged)
                    if shown is None:
                        shown = answers_of(context)
                        write_json(place / SHOWN, shown)
                for test in todo:
                    kept[test.name] = attempted(test, context, name, shown["caveat"])
                    write_json(place / f"{test.name}.json", kept[test.name])
    done = {test.name: kept[test.name] for test in chosen}
    found = Stressed(done, name, results["scale"], place)
    if is_first():
        every = {test: kept[test] for test in STRESS.names() if test in kept}
        if (drawn := plots(every)) is not None:
            write_whole(place / PLOTS, drawn)
        page = Page(results["scale"], name, seed, cfg=cfg, outcomes=every, shown=shown)
        write_whole(found.report, render(page))
    return found


def with_stress(cfg: RunConfig, overrides: Iterable[str]) -> RunConfig:
    """``cfg`` with keys of its ``stress`` section changed."""
    changes: dict[str, Any] = {}
    for item in overrides:
        key, sign, value = item.partition("=")
        if not sign or not key.startswith("stress."):
            raise UserError(
                f"override {item!r} must look like stress.key=value; the run itself "
                "is finished"
            )
        changes[key] = parse_value(item, value)
    return with_overrides(cfg, changes, "dareu stress") if changes else cfg


def context_of(
    run: Session, name: str, judged: Mapping[str, Mapping[str, float]]
) -> Context:
    """What every test is given: the models, from the run's checkpoints."""
    inputs = run.inputs
    check_indices(inputs)
    oracles = oracles_of(inputs.cfg)
    rows = {role: role for role in ROLES if role in oracles} | {"unlearned": name}
    models = {role: params_of(inputs, row) for role, row in rows.items()}
    original = models["original"]
    judges = {name: indexer(run, name, original).built(original) for name in INDICES}
    suite = suite_of(run, {**models, **judges})
    own = {role: judged[row] for role, row in rows.items()}
    context = Context(run, suite, models, own, inputs.folder / FOLDER)
    known = {role: context.probability(params) for role, params in models.items()}
    check_finite("probability of the forget answers", known)
    return context


def answers_of(context: Context) -> dict[str, Any]:
    """The first `ANSWERS` forget records with the models' greedy answers, as JSON."""
    run, stop_ids = context.run, context.suite.tokenizer.stop_ids
    said = {role: context.greedy(role) for role in context.models}
    rows = [
        {
            "prompt": record.prompt,
            "gold": record.response,
            "owner": record.owner,
            "answers": {role: answers.text[row] for role, answers in said.items()},
        }
        for row, record in enumerate(run.inputs.split.forget[:ANSWERS])
    ]
    signs = {role: broken(answers, stop_ids) for role, answers in said.items()}
    return {
        "answers": rows,
        "records": len(run.inputs.split.forget),
        "caveat": caveat_of(signs),
    }


def attempted(
    test: StressTest, context: Context, name: str, caveat: str
) -> dict[str, Any]:
    """The outcome of a test with what it depends on; its verdict ends in ``caveat``."""
    run, seed = context.run, context.run.inputs.seed
    with run.progress.stage(f"seed {seed} {test.name}", 1):
        found = test.attempt(context)
    return {
        "test": test.name,
        "model": name,
        "seed": seed,
        "settings": test.settings(run.inputs.cfg.stress),
        **found,
        "verdict": f"{found['verdict']} {caveat}".strip(),
    }


def on_disk(place: Path, cfg: RunConfig) -> tuple[dict[str, Any], Any]:
    """Outcomes of tests that were found with the same settings; the answers shown."""
    kept = {name: read_kept(place / f"{name}.json") for name in STRESS.names()}
    same = {
        name: found
        for name, found in kept.items()
        if found.get("settings") == STRESS.get(name).settings(cfg.stress)
    }
    return same, read_kept(place / SHOWN) or None


def read_kept(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or an empty one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
