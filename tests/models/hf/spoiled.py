"""Hugging Face folders that are spoiled in one place, and what transformers says.

``python tests/models/hf/spoiled.py`` (needs torch and transformers) writes
``tests/models/golden/spoiled.npz``; the test makes the same folders and needs no torch.
"""

import json
import sys
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import make_golden as hf  # noqa: E402

GOLDEN = hf.GOLDEN / "spoiled.npz"
CASES = 300
FAMILIES = ("llama2", "llama3", "mistral", "qwen2", "qwen3")
DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)
VALUES = {
    "tie_word_embeddings": (True, False, None),
    "num_key_value_heads": (1, 2, 4, None),
    "num_attention_heads": (2, 4, 8),
    "num_hidden_layers": (1, 2, 3),
    "head_dim": (6, 8, 10, None),
    "rms_norm_eps": (1e-5, 1e-3, None),
    "rope_theta": (1e4, 500.0, None),
    "rope_scaling": (
        {"type": "linear", "factor": 2.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "default"},
        None,
    ),
    "rope_parameters": ({"rope_type": "default", "rope_theta": 300.0}, None),
    "hidden_act": ("silu", "gelu", "relu"),
    "attention_bias": (True, False),
    "mlp_bias": (True, False),
    "sliding_window": (2, 5, None),
    "use_sliding_window": (True, False),
    "max_window_layers": (0, 1, 2),
    "layer_types": (["full_attention"] * 2, ["sliding_attention"] * 2),
    "model_type": ("llama", "mistral", "qwen2", "qwen3", "gpt2"),
    "hidden_size": (24, 48),
    "intermediate_size": (40, 24),
    "vocab_size": (61, 60, 64),
    "max_position_embeddings": (8, 64),
    "pretraining_tp": (1, 2),
    "attention_dropout": (0.0, 0.5),
    "partial_rotary_factor": (1.0, 0.5),
    "logit_scale": (0.5,),
    "use_cache": (False,),
}


def spoiled(case: int, folder: Path) -> str:
    """Writes the folder of a case; returns what was done to it."""
    rng = np.random.default_rng([18, case])
    config = hf.config_of(str(rng.choice(FAMILIES)))
    names = list(shapes := hf.shapes_of(config))
    held = {name: hf.tensor(name, shapes[name]) for name in names}
    kinds = ("dropped", "renamed", "duplicated", "dtype", "order", "head", "field")
    kind = str(rng.choice(kinds, p=(0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.4)))
    one, other = (str(name) for name in rng.choice(names, 2, replace=False))
    if kind == "dropped":
        del held[one]
    elif kind == "renamed":
        ways = (f"{one}_", one.replace("model.", ""), f"module.{one}", other)
        held[str(rng.choice(ways))] = held.pop(one)
    elif kind == "dtype":
        chosen = names if rng.random() < 0.5 else [one, other]
        held |= {n: held[n].astype(DTYPES[rng.integers(3)]) for n in chosen}
    elif kind == "head":
        table = held["model.embed_tokens.weight"]
        held["lm_head.weight"] = table if rng.random() < 0.5 else table[::-1].copy()
    elif kind == "field":
        name = str(rng.choice(list(VALUES)))
        config[name] = VALUES[name][rng.integers(len(VALUES[name]))]
        kind = f"{name} = {config[name]}"
    shards = int(rng.integers(1, 4)) if kind not in ("order", "duplicated") else 3
    order = [str(name) for name in rng.permutation(list(held))]
    write(folder, config, {name: held[name] for name in order}, shards)
    if kind == "duplicated":
        duplicate(folder, one, changed=bool(rng.random() < 0.5))
    return f"{config['model_type']}: {kind} {one}"


def write(folder: Path, config: dict, held: dict, shards: int) -> None:
    """Writes a folder of so many files."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    weight_map, names = {}, list(held)
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        file = "model.safetensors" if shards == 1 else file
        own = {name: held[name] for name in names[i::shards]}
        save_file(own, str(folder / file), metadata={"format": "pt"})
        weight_map |= dict.fromkeys(own, file)
    if shards > 1:
        index = json.dumps({"metadata": {}, "weight_map": weight_map})
        (folder / "model.safetensors.index.json").write_text(index)


def duplicate(folder: Path, name: str, changed: bool) -> None:
    """Puts a tensor into a second file, with other numbers or the same."""
    from safetensors.numpy import load_file, save_file

    files = sorted(folder.glob("model-*.safetensors"))
    held = {path: load_file(str(path)) for path in files}
    path = next(path for path in files if name not in held[path])
    value = next(own[name] for own in held.values() if name in own)
    held[path][name] = value + 1 if changed else value
    save_file(held[path], str(path), metadata={"format": "pt"})


def main() -> None:
    said = np.full((CASES, 3, 64), np.nan, np.float32)
    for case in range(CASES):
        with tempfile.TemporaryDirectory() as folder:
            what = spoiled(case, Path(folder) / "hf")
            try:
                logits, _ = hf.run_transformers(Path(folder) / "hf")
                said[case, :, : logits.shape[2]] = logits[:, -1]
            except Exception as error:  # whatever it raises
                what += f" -> {type(error).__name__}"
        print(case, what)
    np.savez_compressed(GOLDEN, last=said)


if __name__ == "__main__":
    sys.exit(main())
