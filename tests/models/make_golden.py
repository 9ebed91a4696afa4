"""Tiny Hugging Face folders of every family, and what transformers computes on them.

``python tests/models/make_golden.py`` (needs torch and transformers) writes
``tests/models/golden/NAME.npz``; the tests make the same folders and need no torch.
"""

import json
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden"
VOCAB, NEW_TOKENS = 61, 9
TINY = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
QWEN_WINDOW = {
    "use_sliding_window": True,
    "sliding_window": 5,
    "max_window_layers": 0,
    "layer_types": ["sliding_attention"] * 2,
}
CONFIGS = {
    "llama2": {"model_type": "llama", "num_key_value_heads": 4, "rope_theta": 1e4},
    "llama3": {
        "model_type": "llama",
        "tie_word_embeddings": True,
        "rope_parameters": {**LLAMA3, "rope_theta": 500.0},
    },
    "llama_linear": {
        "model_type": "llama",
        "rope_theta": 1e4,
        "rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 2.0},
    },
    "mistral": {"model_type": "mistral", "sliding_window": 4, "rope_theta": 1e4},
    "mistral_full": {"model_type": "mistral", "sliding_window": None, "head_dim": 8},
    "qwen2": {
        "model_type": "qwen2",
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "sliding_window": 4,
        "rope_theta": 1e6,
    },
    "qwen2_window": {"model_type": "qwen2", "rope_theta": 1e4, **QWEN_WINDOW},
    "qwen3": {
        "model_type": "qwen3",
        "head_dim": 10,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    },
}


def config_of(name):
    architecture = f"{CONFIGS[name]['model_type'].capitalize()}ForCausalLM"
    return {**TINY, "architectures": [architecture], **CONFIGS[name]}


def shapes_of(config):
    """Shape of every tensor, in PyTorch's [out, in] order."""
    d, f, v = (config[k] for k in ("hidden_size", "intermediate_size", "vocab_size"))
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or d // heads
    wide = {"q": heads * size, "o": d}
    wide["k"] = wide["v"] = config["num_key_value_heads"] * size
    shapes = {"model.embed_tokens.weight": (v, d), "model.norm.weight": (d,)}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        for one, rows in wide.items():
            columns = heads * size if one == "o" else d
            shapes[f"{at}self_attn.{one}_proj.weight"] = (rows, columns)
            if config["model_type"] == "qwen2" and one != "o":
                shapes[f"{at}self_attn.{one}_proj.bias"] = (rows,)
        if config["model_type"] == "qwen3":
            shapes[f"{at}self_attn.q_norm.weight"] = (size,)
            shapes[f"{at}self_attn.k_norm.weight"] = (size,)
        for one in ("gate", "up"):
            shapes[f"{at}mlp.{one}_proj.weight"] = (f, d)
        shapes[f"{at}mlp.down_proj.weight"] = (d, f)
        for one in ("input", "post_attention"):
            shapes[f"{at}{one}_layernorm.weight"] = (d,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (v, d)
    return shapes


def tensor(name, shape, dtype=np.float32):
    """Random numbers that depend on the tensor's name alone."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    noise = rng.normal(size=shape)
    wide = 1.0 + 0.2 * noise if name.endswith("norm.weight") else 0.4 * noise
    return wide.astype(dtype)


def make_folder(folder, config, shards=1, dtype=np.float32):
    """Writes a Hugging Face folder of ``config`` in one file or several."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    names = list(shapes := shapes_of(config))
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        file = "model.safetensors" if shards == 1 else file
        held = {name: tensor(name, shapes[name], dtype) for name in names[i::shards]}
        save_file(held, str(folder / file), metadata={"format": "pt"})
        weight_map |= dict.fromkeys(held, file)
    if shards > 1:
        index = json.dumps({"metadata": {}, "weight_map": weight_map})
        (folder / "model.safetensors.index.json").write_text(index)
    return folder


def inputs():
    """Left-padded tokens and their mask, rows of 13, 7 and 1 tokens."""
    rng = np.random.default_rng(5)
    tokens = rng.integers(3, VOCAB, (3, 13)).astype(np.int32)
    mask = np.arange(13)[None] >= 13 - np.array([[13], [7], [1]])
    return np.where(mask, tokens, 0).astype(np.int32), mask


def run_transformers(folder):
    """``(logits [3, 13, V], greedy tokens [3, NEW_TOKENS])`` by torch."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens, mask = (torch.tensor(np.asarray(x, np.int64)) for x in inputs())
    position = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        out = model(input_ids=tokens, attention_mask=mask, position_ids=position)
        new = model.generate(
            input_ids=tokens,
            attention_mask=mask,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return out.logits.numpy(), new[:, tokens.shape[1] :].numpy().astype(np.int32)


def main():
    GOLDEN.mkdir(exist_ok=True)
    for name in CONFIGS:
        with tempfile.TemporaryDirectory() as folder:
            logits, new = run_transformers(make_folder(Path(folder), config_of(name)))
        np.savez_compressed(GOLDEN / f"{name}.npz", logits=logits, new=new)
        print(name, logits.shape, new[0])


if __name__ == "__main__":
    sys.exit(main())
