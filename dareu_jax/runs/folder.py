"""The folder of a run: whose it is, and what a finished one holds."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from dareu_jax.config import RunConfig, build_config, completed
from dareu_jax.config.load import read_yaml
from dareu_jax.data import Corpus
from dareu_jax.errors import UserError, did_you_mean

UNLEARNED = "unlearned"
"""The name that stands for the first method of a run."""
PROGRAMS = "programs"
"""Where a run folder keeps compiled programs, if it does."""
CONFIG, RESULTS, CORPUS = "config.resolved.yaml", "results.json", "corpus.sha256"


def stage_folder(folder: Path, seed: int, stage: str) -> Path:
    """Return where a stage of a seed keeps its checkpoints."""
    return folder / "checkpoints" / f"seed_{seed}" / stage


def log_path(folder: Path, seed: int, row: str) -> Path:
    """Return where a seed keeps the evaluation of a row of the table."""
    return folder / "logs" / f"seed_{seed}" / row / "owners.json"


def read_log(folder: Path, seed: int, row: str) -> dict[str, Any]:
    """Return the evaluation of a row: metrics with values per record, and answers."""
    return json.loads(log_path(folder, seed, row).read_text(encoding="utf-8"))


def rows_of(cfg: RunConfig) -> tuple[str, ...]:
    """Return the rows of a run's table, in order: original, retrained, methods."""
    return (*oracles_of(cfg), *cfg.methods)


def oracles_of(cfg: RunConfig) -> tuple[str, ...]:
    """Return the rows of the table that no unlearning method makes.

    Where there is no retrained model, the one before the fine-tuning stands for it.
    """
    if not cfg.retrained.skip:
        return "original", "retrained"
    return ("original", "base") if base_of(cfg) else ("original",)


def base_of(cfg: RunConfig) -> tuple[str, str] | None:
    """Return the folder of the model before its fine-tuning, and the key that says so.

    None: there is no such model.
    """
    if path := cfg.options("dareu").base_path:
        return path, "dareu.base_path"
    path = cfg.model.path
    return (path, "model.path") if path and cfg.finetune.epochs > 0 else None


def claimed(cfg: RunConfig, folder: Path) -> bool:
    """Return whether a folder holds this run; raise `UserError` if it holds another."""
    path = folder / CONFIG
    if not path.exists():
        return False
    there = completed(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    here = cfg.model_dump(mode="json")
    there["compilation_cache"] = here["compilation_cache"]  # it changes no number
    key, was, now = first_difference(there, here)
    if key:
        raise UserError(
            f"{folder} holds a run with {key} = {was!r}, this configuration says "
            f"{now!r}; choose another --out or delete the folder"
        )
    return True


def check_corpus(corpus: Corpus, folder: Path) -> None:
    """Raise `UserError` when the records are not those that the run began with."""
    path = folder / CORPUS
    if path.read_text(encoding="utf-8").strip() != corpus.fingerprint:
        raise UserError(
            f"the corpus has changed since the run in {folder} began; choose another "
            "--out, or give back the records of corpus.path"
        )


def first_difference(a: Any, b: Any, key: str = "") -> tuple[str, Any, Any]:
    """Return the first dotted key in which two trees differ, or empty strings."""
    if isinstance(a, dict) and isinstance(b, dict):
        for name in dict.fromkeys([*b, *a]):
            found = first_difference(a.get(name), b.get(name), f"{key}.{name}")
            if found[0]:
                return found
        return "", None, None
    return ("", None, None) if a == b else (key.removeprefix("."), a, b)


def finished(folder: Path) -> tuple[RunConfig, Mapping[str, Any]]:
    """Return configuration and results of a finished run; raise `UserError` if none."""
    path = folder / RESULTS
    if not path.exists():
        raise UserError(
            f"{folder} holds no finished run (no {RESULTS}); finish dareu run first"
        )
    cfg = build_config(read_yaml(folder / CONFIG), str(folder))
    return cfg, json.loads(path.read_text(encoding="utf-8"))


def row_of(folder: Path, cfg: RunConfig, rows: Iterable[str], name: str) -> str:
    """Return the row of the table that ``name`` means; raise `UserError` if none."""
    known = list(rows)
    name = cfg.methods[0] if name == UNLEARNED and cfg.methods else name
    if name not in known:
        near = did_you_mean(name, known)
        raise UserError(
            f"{folder} has no model {name!r}{near}; known: "
            f"{', '.join([UNLEARNED, *known])}"
        )
    return name


def seed_of(folder: Path, cfg: RunConfig, seed: int | None) -> int:
    """Return a run's seed, by default the first; raise `UserError` for another."""
    seed = cfg.seeds[0] if seed is None else seed
    if seed not in cfg.seeds:
        raise UserError(f"{folder} has no seed {seed}; known: {list(cfg.seeds)}")
    return seed
