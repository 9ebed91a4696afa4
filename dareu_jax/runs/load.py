"""Load a model from an imported folder or a finished run; nothing is trained."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from dareu_jax.config import RunConfig
from dareu_jax.errors import UserError
from dareu_jax.models import Decoder, merge
from dareu_jax.models.hf.imported import DECODER
from dareu_jax.models.loaded import LoadedModel, load_model
from dareu_jax.runs import folder as run_folder
from dareu_jax.runs.inputs import Inputs
from dareu_jax.runs.plan import Planned, plan
from dareu_jax.runs.stages import load
from dareu_jax.storage.checkpoints import finished_step
from dareu_jax.storage.fingerprint import params_fingerprint


class Subject(NamedTuple):
    """A model that is not loaded yet."""

    load: Callable[[], LoadedModel]
    run: Inputs | None = None


def subject_of(
    folder: Path, row: str | None = None, seed: int | None = None
) -> Subject:
    """Return the model of a folder; of a run ``row``, by default what was unlearned."""
    if (folder / run_folder.RESULTS).exists():
        return of_run(folder, row or run_folder.UNLEARNED, seed)
    if not (folder / DECODER).exists():
        raise UserError(f"{folder} {missing(folder)}")
    if row is not None or seed is not None:
        raise UserError(
            f"{folder} is an imported model; --model and --seed choose among those of "
            "a run, leave them out"
        )
    return Subject(lambda: load_model(folder))


def reference_of(folder: Path, seed: int | None) -> Subject:
    """Return the model to compare with: of a run the retrained one of a seed."""
    if (folder / run_folder.RESULTS).exists():
        return of_run(folder, "retrained", seed)
    return subject_of(folder)


def missing(folder: Path) -> str:
    """Return what a folder is that nothing can be loaded from, and what to do."""
    if (folder / run_folder.CONFIG).exists():
        return "holds a run that is not finished; finish dareu run first"
    if (folder / "config.json").exists():
        return f"is a Hugging Face folder; run dareu import {folder} --out DIR first"
    return (
        "holds no imported model and no finished run; give a folder that dareu import "
        "or dareu run wrote"
    )


def of_run(folder: Path, row: str, seed: int | None) -> Subject:
    """Return a row of a finished run's table; raise `UserError` where there is none."""
    cfg, results = run_folder.finished(folder)
    row = run_folder.row_of(folder, cfg, results["models"], row)
    inputs = opened(cfg, run_folder.seed_of(folder, cfg, seed), folder)
    return Subject(lambda: whole_model(inputs, row), inputs)


def opened(cfg: RunConfig, seed: int, folder: Path) -> Inputs:
    """Return what a seed of a finished run read, for reading alone."""
    return Inputs(cfg, seed, folder, is_finished=True)


def params_of(inputs: Inputs, row: str, step: int | None = None) -> Any:
    """Return the parameters of a row of a finished run, of a method also at a step."""
    if row in run_folder.oracles_of(inputs.cfg):
        if step is not None:
            raise UserError(f"model {row!r} is of no method; leave --step out")
        return load(inputs, Planned(row, "model"), {})
    results: dict[str, Any] = {}
    if inputs.cfg.lora is not None:  # the frozen part is the original's
        results["original"] = load(inputs, Planned("original", "model"), {})
    return load(inputs, Planned(row, "method"), results, step)


def check_indices(inputs: Inputs) -> None:
    """Raise `UserError` where the reward's or the judge's finished index is missing."""
    for stage in plan(inputs.cfg):
        if stage.name in ("reward", "judge"):
            folder = run_folder.stage_folder(inputs.folder, inputs.seed, stage.label)
            if finished_step(folder) is None:
                raise UserError(
                    f"{folder} is missing or damaged; put it back, or delete the run's "
                    "logs and let the same dareu run make it again"
                )


def whole_model(inputs: Inputs, row: str) -> LoadedModel:
    """Return a model of a run, adapters merged into it."""
    shape, imported = inputs.model.cfg, inputs.imported
    with jax.set_mesh(inputs.mesh):
        params = merge(params_of(inputs, row), shape.lora_alpha)
    whole = dataclasses.replace(shape, lora_alpha=0.0, lora_dropout=0.0)
    context = sum(inputs.lengths) if imported is None else imported.context
    return LoadedModel(
        decoder=Decoder(whole),
        params=params,
        tokenizer=inputs.tokenizer,
        mesh=inputs.mesh,
        fingerprint=params_fingerprint(params),
        context=context,
        wording=inputs.wording,
    )
