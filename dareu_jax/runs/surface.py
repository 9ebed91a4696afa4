"""Offer the run side to Python programs: run, load, evaluate."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from dareu_jax.config import RunConfig
from dareu_jax.models.loaded import LoadedModel
from dareu_jax.runs import pipeline
from dareu_jax.runs.benchmark import Asked, evaluated
from dareu_jax.runs.folder import UNLEARNED, finished
from dareu_jax.runs.load import of_run, subject_of
from dareu_jax.training.progress import Progress


class FinishedRun(NamedTuple):
    """A finished run."""

    folder: Path
    cfg: RunConfig
    results: dict[str, Any]

    def model(self, row: str = UNLEARNED, seed: int | None = None) -> LoadedModel:
        """Load a model of the run's table, by default that of the first method.

        Raises:
          UserError: no such row or seed, or its checkpoint is missing.
        """
        return of_run(self.folder, row, seed).load()


def run(
    cfg: RunConfig, out: Path | str, progress: Progress | None = None
) -> FinishedRun:
    """Do all that is not yet done of a run.

    Raises:
      UserError: bad input, or a folder that holds a run of another configuration.
    """
    pipeline.run(cfg, Path(out), progress)
    return load_run(out)


def load_run(folder: Path | str) -> FinishedRun:
    """Load a finished run; raise `UserError` where there is none in ``folder``."""
    cfg, results = finished(Path(folder))
    return FinishedRun(Path(folder), cfg, dict(results))


def load_model(folder: Path | str) -> LoadedModel:
    """Load an imported model, or of a finished run what its first method left."""
    return subject_of(Path(folder)).load()


def evaluate(
    folder: Path | str,
    suite: str = "tofu",
    *,
    out: Path | str,
    progress: Progress | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Judge a model by a benchmark, as ``dareu evaluate`` does.

    ``settings`` are further fields of `runs.benchmark.Asked`, such as ``data``,
    ``forget``, ``row`` and ``first``; the log is written to the folder ``out``.

    Returns metric -> ``{"agg_value": ..., "value_by_index": ...}``; raises `UserError`
    for bad input.
    """
    asked = Asked(model=Path(folder), suite=suite, out=Path(out), **settings)
    log = evaluated(asked, progress or Progress())
    return json.loads(log.read_text(encoding="utf-8"))
