"""Who is judged: a folder that `dareu import` wrote, or a row of a finished run."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax

from dareu_jax.attribution.identity import params_fingerprint
from dareu_jax.attributor.model import Model, load_model
from dareu_jax.config import RunConfig
from dareu_jax.errors import UserError
from dareu_jax.export import UNLEARNED, finished, row_of, seed_of
from dareu_jax.imported import DECODER
from dareu_jax.inputs import Inputs
from dareu_jax.models import Decoder, merge
from dareu_jax.reporting.progress import Progress
from dareu_jax.stages import Run
from dareu_jax.tracking import Tracker

RETRAINED = "retrained"


class Subject(NamedTuple):
    """A model that is not loaded yet.

    Attributes:
      load: ``() -> Model``.
      run: what the run that trained it read; None: it was imported.
    """

    load: Callable[[], Model]
    run: Inputs | None = None


def subject_of(
    folder: Path, progress: Progress, row: str | None = None, seed: int | None = None
) -> Subject:
    """The model of a folder; of a run ``row`` (by default what was unlearned).

    Raises:
      UserError: neither an imported model nor a finished run; no such row or seed; a
        row or a seed of an imported model.
    """
    if (folder / "results.json").exists():
        return of_run(folder, progress, row or UNLEARNED, seed)
    if not (folder / DECODER).exists():
        raise UserError(f"{folder} {missing(folder)}")
    if row is not None or seed is not None:
        raise UserError(
            f"{folder} is an imported model; --model and --seed choose among those of "
            "a run, leave them out"
        )
    return Subject(lambda: load_model(folder))


def reference_of(folder: Path, progress: Progress, seed: int | None) -> Subject:
    """The model to compare with: of a run the retrained one, of the same seed."""
    is_run = (folder / "results.json").exists()
    how = (RETRAINED, seed) if is_run else (None, None)
    return subject_of(folder, progress, *how)


def missing(folder: Path) -> str:
    """What a folder is that nothing can be loaded from, and what to do."""
    if (folder / "config.resolved.yaml").exists():
        return "holds a run that is not finished; finish dareu run first"
    if (folder / "config.json").exists():
        return f"is a Hugging Face folder; run dareu import {folder} --out DIR first"
    return (
        "holds no imported model and no finished run; give a folder that dareu import "
        "or dareu run wrote"
    )


def of_run(folder: Path, progress: Progress, row: str, seed: int | None) -> Subject:
    """A row of a finished run's table; raises `UserError` where there is none."""
    cfg, results = finished(folder)
    row = row_of(folder, cfg, results["models"], row)
    number = seed_of(folder, cfg, seed)
    return Subject(
        lambda: trained(cfg, number, folder, row, progress),
        Inputs(cfg, number, folder),
    )


def trained(
    cfg: RunConfig, seed: int, folder: Path, row: str, progress: Progress
) -> Model:
    """A model of a run from its checkpoints, adapters merged into it."""
    with Tracker(folder) as tracker:
        run = Run(cfg, seed, folder, tracker, progress)
        shape = run.model.cfg
        with jax.set_mesh(run.mesh):
            params = merge(run.model_params(row), shape.lora_alpha)
    whole = dataclasses.replace(shape, lora_alpha=0.0, lora_dropout=0.0)
    context = sum(run.lengths) if run.imported is None else run.imported.context
    made = params_fingerprint(params)
    return Model(Decoder(whole), params, run.tokenizer, run.mesh, made, context)
