"""`dareu stress`: every test on the models of a finished run, each kept when done."""

import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from dareu_jax.config import RunConfig, with_overrides
from dareu_jax.errors import UserError
from dareu_jax.export import UNLEARNED as FIRST_METHOD
from dareu_jax.export import finished, row_of, seed_of
from dareu_jax.pipeline import check_corpus, suite_of, write_json
from dareu_jax.registry import STRESS
from dareu_jax.reporting.progress import Progress
from dareu_jax.stages import Run
from dareu_jax.stress.context import (
    ORIGINAL,
    RETRAINED,
    UNLEARNED,
    Context,
    StressTest,
)
from dareu_jax.stress.plot import write_plots
from dareu_jax.tracking import Tracker
from dareu_jax.trees import parse_value

FOLDER, PLOTS = "stress", "plots.png"


class Stressed(NamedTuple):
    """What `stress` found: outcomes by test, of which model and run, kept where."""

    outcomes: dict[str, dict[str, Any]]
    model: str
    scale: str
    folder: Path


def stress(
    folder: Path,
    progress: Progress,
    tests: Sequence[str] = (),
    model: str = FIRST_METHOD,
    seed: int | None = None,
    overrides: Iterable[str] = (),
) -> Stressed:
    """Tries to bring back what a model of a finished run has unlearned.

    What is on disk with the same settings is not run again.

    Args:
      folder: of the run; progress: where news goes.
      tests: of `STRESS`, none: all; model: a row of the run's table, or
        ``unlearned`` for its first method.
      seed: one of the run's, none: the first; overrides: ``stress.key=value``.

    Raises:
      UserError: no finished run, no such test, model, seed or setting.
    """
    chosen = [STRESS.get(name) for name in tests or STRESS.names()]
    cfg, results = finished(folder)
    cfg = with_stress(cfg, overrides)
    name = row_of(folder, cfg, results["models"], model)
    seed = seed_of(folder, cfg, seed)
    kept = folder / FOLDER / name / f"seed_{seed}"
    outcomes = {test.name: cached(kept, test, cfg) for test in chosen}
    todo = [test for test in chosen if outcomes[test.name] is None]
    if todo:
        with Tracker(folder / FOLDER) as tracker:
            run = Run(cfg, seed, folder, tracker, progress)
            check_corpus(run.corpus, folder)
            with jax.set_mesh(run.mesh):
                context = context_of(run, name)
                for test in todo:
                    found = attempted(test, context, name)
                    write_json(kept / f"{test.name}.json", found)
                    outcomes[test.name] = found
    done = {test: found for test, found in outcomes.items() if found is not None}
    write_plots(kept / PLOTS, done)
    return Stressed(done, name, results["scale"], kept)


def with_stress(cfg: RunConfig, overrides: Iterable[str]) -> RunConfig:
    """``cfg`` with keys of its ``stress`` section changed.

    Raises:
      UserError: no ``stress.key=value``, or no such key or value.
    """
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


def context_of(run: Run, name: str) -> Context:
    """What every test is given: the models, from the run's checkpoints."""
    suite = suite_of(run)
    models = {
        role: run.model_params(row)
        for role, row in ((ORIGINAL, ORIGINAL), (RETRAINED, RETRAINED))
        if row in run.oracles
    }
    models[UNLEARNED] = run.model_params(name)
    return Context(run, suite, models, run.folder / FOLDER)


def attempted(test: StressTest, context: Context, name: str) -> dict[str, Any]:
    """The outcome of a test with what it depends on."""
    run = context.run
    begun = time.monotonic()
    found = test.attempt(context)
    wall = time.monotonic() - begun
    run.progress.say(f"seed {run.seed} {test.name}: done in {wall:.1f} s")
    return {
        "test": test.name,
        "model": name,
        "seed": run.seed,
        "settings": test.settings(run.cfg.stress),
        **found,
    }


def cached(folder: Path, test: StressTest, cfg: RunConfig) -> dict[str, Any] | None:
    """The outcome on disk, where it was found with the same settings."""
    path = folder / f"{test.name}.json"
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    same = isinstance(found, dict) and found.get("settings") == test.settings(
        cfg.stress
    )
    return found if same else None
