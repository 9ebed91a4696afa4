"""Write a run's model as a Hugging Face folder, for transformers or vLLM."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dareu_jax.errors import UserError
from dareu_jax.models import merge, split
from dareu_jax.models.hf import weights
from dareu_jax.models.hf.families import config_json
from dareu_jax.models.hf.folder import copy_files, save_tensors, write_tensors
from dareu_jax.parallel import is_first
from dareu_jax.runs.folder import finished, row_of, seed_of
from dareu_jax.runs.inputs import Inputs
from dareu_jax.runs.load import opened, params_of
from dareu_jax.storage.files import (
    check_new,
    new_folder,
    read_json,
    write_text,
    write_whole,
)

Card = Callable[[Mapping[str, Any], str, int, int | None], str]
"""``(results, row, seed, step) -> text`` of the folder's README.md."""


def export_run(
    folder: Path,
    name: str,
    out: Path,
    card: Card,
    *,
    seed: int | None = None,
    adapter: bool = False,
    step: int | None = None,
) -> Path:
    """Write a row of a finished run, or ``unlearned``, as a new Hugging Face folder.

    ``card`` writes its README.md; ``step`` is one of a method's saved steps.

    Raises:
      UserError: what is asked for is not there, or ``out`` exists.
    """
    check_new(out)
    cfg, results = finished(folder)
    name = row_of(folder, cfg, results["models"], name)
    seed = seed_of(folder, cfg, seed)
    inputs = opened(cfg, seed, folder)
    params = params_of(inputs, name, step)
    with new_folder(out) as draft:
        if adapter:
            write_adapter(inputs, params, name, draft)
        else:
            write_small_files(inputs, draft)
            shape = inputs.model.cfg
            tensors = weights.hf_arrays(shape, merge(params, shape.lora_alpha))
            write_tensors(draft, weights.tensor_sizes(shape), tensors)
        write_text(draft / "README.md", card(results, name, seed, step))
    return out


def write_adapter(inputs: Inputs, params: Any, name: str, to: Path) -> None:
    """Write the model's adapters for PEFT; raise `UserError` where it has none."""
    lora, (_, frozen) = inputs.cfg.lora, split(params)
    if lora is None or not frozen:
        raise UserError(
            f"model {name!r} of {inputs.folder} has no adapters; leave --adapter out"
        )
    tensors = dict(weights.peft_arrays(inputs.model.cfg, params))
    save_tensors(to / "adapter_model.safetensors", tensors)
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": inputs.imported and inputs.imported.source,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": weights.peft_modules(inputs.model.cfg, lora.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    write_text(to / "adapter_config.json", json.dumps(fields, indent=2) + "\n")


def write_small_files(inputs: Inputs, to: Path) -> None:
    """Write configuration, tokenizer and generation defaults; imported ones stay."""
    if not is_first():
        return
    if inputs.imported is not None:
        copy_files(inputs.imported.files, to)
        fields = read_json(to / "config.json")
        written = config_json(
            inputs.model.cfg, fields.get("max_position_embeddings", 0)
        )
        if (
            fields["model_type"] != written["model_type"]
        ):  # its family is not known here
            fields = written
    else:
        copy_files(inputs.folder / "tokenizer", to)
        fields = config_json(inputs.model.cfg, max_positions=sum(inputs.lengths))
    ids = {
        "pad_token_id": inputs.tokenizer.pad_id,
        "eos_token_id": inputs.tokenizer.eos_id,
    }
    fields |= {key: x for key, x in ids.items() if fields.get(key) is None}
    fields["dtype"] = inputs.model.cfg.param_dtype
    write_whole(to / "config.json", json.dumps(fields, indent=2) + "\n")
    if not (to / "generation_config.json").exists():
        write_whole(to / "generation_config.json", json.dumps(ids, indent=2) + "\n")
