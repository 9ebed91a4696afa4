"""A run's model as a Hugging Face folder, for transformers or vLLM."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dareu_jax.config import RunConfig, build_config, read_yaml
from dareu_jax.errors import UserError
from dareu_jax.folders import check_new, new_folder
from dareu_jax.imported import copy_small_files
from dareu_jax.models import merge, split
from dareu_jax.models.families import config_json
from dareu_jax.models.hf_folder import read_json, save_tensors, write_tensors
from dareu_jax.models.hf_io import hf_arrays, peft_arrays, peft_modules, tensor_sizes
from dareu_jax.parallel import is_first
from dareu_jax.registry import did_you_mean
from dareu_jax.reporting.card import model_card
from dareu_jax.reporting.progress import Progress
from dareu_jax.stages import Run
from dareu_jax.tracking import Tracker

UNLEARNED = "unlearned"


def export_run(
    folder: Path,
    name: str,
    out: Path,
    progress: Progress,
    seed: int | None = None,
    adapter: bool = False,
    step: int | None = None,
) -> Path:
    """Writes one model of a finished run as a Hugging Face folder.

    Args:
      folder: of the run; name: a row of its table, or ``unlearned`` for the first of
        its methods.
      out: a folder that does not exist yet; it appears whole or not at all.
      progress: where news goes; seed: one of the run's, the first by default.
      adapter: a PEFT adapter instead of the merged model, where ``lora`` was set.
      step: one of a method's saved steps, the last by default.

    Raises:
      UserError: no finished run there, no such model, seed or step, no adapters to
        write, ``out`` exists.
    """
    check_new(out)
    cfg, results = finished(folder)
    name = row_of(folder, cfg, results["models"], name)
    seed = seed_of(folder, cfg, seed)
    with Tracker(folder) as tracker:
        run = Run(cfg, seed, folder, tracker, progress)
        if step is None:
            params = run.model_params(name)
        elif name in run.oracles:
            raise UserError(f"model {name!r} is of no method; leave --step out")
        else:
            params = run.unlearned_at(name, step)
    with new_folder(out) as draft:
        if adapter:
            write_adapter(run, params, name, draft)
        else:
            write_merged(run, params, draft)
        write(draft / "README.md", model_card(results, name, seed, step))
    return out


def row_of(folder: Path, cfg: RunConfig, rows: Iterable[str], name: str) -> str:
    """The row of a run's table that ``name`` means; ``unlearned``: its first method.

    Raises:
      UserError: there is none.
    """
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
    """One of a run's seeds, the first by default; raises `UserError` for another."""
    seed = cfg.seeds[0] if seed is None else seed
    if seed not in cfg.seeds:
        raise UserError(f"{folder} has no seed {seed}; known: {list(cfg.seeds)}")
    return seed


def write_merged(run: Run, params: Any, to: Path) -> None:
    """Writes a whole model, adapters merged into it."""
    cfg = run.model.cfg
    write_small_files(run, to)
    merged = merge(params, cfg.lora_alpha)
    write_tensors(to, tensor_sizes(cfg), hf_arrays(cfg, merged))


def write_adapter(run: Run, params: Any, name: str, to: Path) -> None:
    """Writes ``adapter_config.json`` and ``adapter_model.safetensors`` for PEFT.

    Raises:
      UserError: the model has no adapters.
    """
    lora, (_, frozen) = run.cfg.lora, split(params)
    if lora is None or not frozen:
        raise UserError(
            f"model {name!r} of {run.folder} has no adapters; leave --adapter out"
        )
    tensors = dict(peft_arrays(run.model.cfg, params))
    save_tensors(to / "adapter_model.safetensors", tensors)
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": run.imported and run.imported.source,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": peft_modules(run.model.cfg, lora.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    write(to / "adapter_config.json", json.dumps(fields, indent=2) + "\n")


def write_small_files(run: Run, to: Path) -> None:
    """Writes configuration, tokenizer and generation defaults of a run's model.

    An imported model keeps its own files; only the dtype may have changed.
    """
    if not is_first():
        return
    if run.imported is not None:
        copy_small_files(run.imported.files, to)
        fields = read_json(to / "config.json")
    else:
        copy_small_files(run.folder / "tokenizer", to)
        fields = config_json(run.model.cfg, max_positions=sum(run.lengths))
    ids = {"pad_token_id": run.tokenizer.pad_id, "eos_token_id": run.tokenizer.eos_id}
    fields |= {key: x for key, x in ids.items() if fields.get(key) is None}
    fields["dtype"] = run.model.cfg.param_dtype
    write(to / "config.json", json.dumps(fields, indent=2) + "\n")
    if not (to / "generation_config.json").exists():
        write(to / "generation_config.json", json.dumps(ids, indent=2) + "\n")


def write(path: Path, text: str) -> None:
    """Writes a text file, from process 0."""
    if is_first():
        path.write_text(text, encoding="utf-8")


def finished(folder: Path) -> tuple[RunConfig, Mapping[str, Any]]:
    """Returns configuration and results of a finished run.

    Raises:
      UserError: there is none in ``folder``.
    """
    path = folder / "results.json"
    if not path.exists():
        raise UserError(
            f"{folder} holds no finished run (no results.json); finish dareu run first"
        )
    cfg = build_config(read_yaml(folder / "config.resolved.yaml"), str(folder))
    return cfg, json.loads(path.read_text(encoding="utf-8"))
