"""Tiny Hugging Face folders of every family, and what transformers computes on them.

``python tests/models/make_golden.py [NAME ...]`` (needs torch and transformers) writes
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
GEMMA = {
    "head_dim": 8,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_act": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
}
NEOX = {
    "model_type": "gpt_neox",
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "rotary_pct": 0.25,
    "rotary_emb_base": 10000,
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
    "qwen2_late_window": {
        "model_type": "qwen2",
        "rope_theta": 1e4,
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 1,
    },
    "olmo2": {"model_type": "olmo2", "rope_theta": 5e5},
    "olmo2_bias": {"model_type": "olmo2", "attention_bias": True, "head_dim": 8},
    "smollm3": {
        "model_type": "smollm3",
        "num_hidden_layers": 5,
        "tie_word_embeddings": True,
    },
    "smollm3_window": {
        "model_type": "smollm3",
        "no_rope_layers": [0, 1],
        "use_sliding_window": True,
        "sliding_window": 4,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "phi3": {"model_type": "phi3", "sliding_window": 5, "num_key_value_heads": 4},
    "phi4_mini": {
        "model_type": "phi3",
        "partial_rotary_factor": 0.75,
        "head_dim": 8,
        "tie_word_embeddings": True,
    },
    "gemma2": {
        **GEMMA,
        "model_type": "gemma2",
        "num_hidden_layers": 3,
        "sliding_window": 5,
        "query_pre_attn_scalar": 7,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 20.0,
    },
    "gemma3": {
        **GEMMA,
        "model_type": "gemma3_text",
        "tie_word_embeddings": False,
        "num_hidden_layers": 4,
        "sliding_window": 5,
        "sliding_window_pattern": 3,
        "query_pre_attn_scalar": 9,
        "rope_theta": 1e5,
        "rope_local_base_freq": 100.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    "pythia": {**NEOX, "use_parallel_residual": True},
    "gpt_neox": {
        **NEOX,
        "use_parallel_residual": False,
        "hidden_act": "gelu_fast",
        "rotary_pct": 1.0,
        "rotary_emb_base": 500,
        "tie_word_embeddings": True,
    },
}
ARCHITECTURES = {
    "gemma3_text": "Gemma3ForCausalLM",
    "gpt_neox": "GPTNeoXForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}


def config_of(name):
    kind = CONFIGS[name]["model_type"]
    architecture = ARCHITECTURES.get(kind, f"{kind.capitalize()}ForCausalLM")
    return {**TINY, "architectures": [architecture], **CONFIGS[name]}


def shapes_of(config):
    """Shape of every tensor, in PyTorch's [out, in] order."""
    kind = config["model_type"]
    d, f, v = (config[k] for k in ("hidden_size", "intermediate_size", "vocab_size"))
    if kind == "gpt_neox":
        shapes = neox_shapes(config, d, f, v)
    else:
        shapes = {"model.embed_tokens.weight": (v, d), "model.norm.weight": (d,)}
        for layer in range(config["num_hidden_layers"]):
            at = f"model.layers.{layer}."
            own = {**attention_shapes(config, d), **mlp_shapes(config, d, f)}
            shapes |= {f"{at}{name}": shape for name, shape in own.items()}
            for one in NORMS.get(kind, NORMS["llama"]):
                shapes[f"{at}{one}_layernorm.weight"] = (d,)
    if not config["tie_word_embeddings"]:
        shapes["embed_out.weight" if kind == "gpt_neox" else "lm_head.weight"] = (v, d)
    return shapes


GEMMA_NORMS = ("input", "post_attention", "pre_feedforward", "post_feedforward")
NORMS = {
    "llama": ("input", "post_attention"),
    "olmo2": ("post_attention", "post_feedforward"),
    "gemma2": GEMMA_NORMS,
    "gemma3_text": GEMMA_NORMS,
}


def attention_shapes(config, d):
    kind, heads = config["model_type"], config["num_attention_heads"]
    size = config.get("head_dim") or d // heads
    wide = {"q": heads * size}
    wide["k"] = wide["v"] = config["num_key_value_heads"] * size
    both = bool(config.get("attention_bias"))
    products = {"q_proj": (wide["q"], d), "o_proj": (d, heads * size)}
    products |= {f"{one}_proj": (wide[one], d) for one in "kv"}
    if kind == "phi3":
        fused = (sum(wide.values()), d)
        products = {"qkv_proj": fused, "o_proj": products["o_proj"]}
    shapes = {}
    for name, shape in products.items():
        shapes[f"self_attn.{name}.weight"] = shape
        if both or (kind == "qwen2" and name != "o_proj"):
            shapes[f"self_attn.{name}.bias"] = shape[:1]
    if kind in ("qwen3", "gemma3_text", "olmo2"):
        for one in "qk":
            width = wide[one] if kind == "olmo2" else size
            shapes[f"self_attn.{one}_norm.weight"] = (width,)
    return shapes


def mlp_shapes(config, d, f):
    products = {"gate_proj": (f, d), "up_proj": (f, d), "down_proj": (d, f)}
    if config["model_type"] == "phi3":
        products = {"gate_up_proj": (2 * f, d), "down_proj": (d, f)}
    shapes = {f"mlp.{name}.weight": shape for name, shape in products.items()}
    if config.get("mlp_bias"):
        shapes |= {f"mlp.{name}.bias": shape[:1] for name, shape in products.items()}
    return shapes


def neox_shapes(config, d, f, v):
    shapes = {"gpt_neox.embed_in.weight": (v, d)}
    mlp = {"mlp.dense_h_to_4h": (f, d), "mlp.dense_4h_to_h": (d, f)}
    attention = {"attention.query_key_value": (3 * d, d), "attention.dense": (d, d)}
    for layer in range(config["num_hidden_layers"]):
        at = f"gpt_neox.layers.{layer}."
        for name, shape in {**attention, **mlp}.items():
            shapes[f"{at}{name}.weight"] = shape
            if name in mlp or config.get("attention_bias", True):
                shapes[f"{at}{name}.bias"] = shape[:1]
        for one in ("input_layernorm", "post_attention_layernorm"):
            shapes |= {f"{at}{one}.weight": (d,), f"{at}{one}.bias": (d,)}
    final = "gpt_neox.final_layer_norm"
    return shapes | {f"{final}.weight": (d,), f"{final}.bias": (d,)}


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
    for name in sys.argv[1:] or CONFIGS:
        with tempfile.TemporaryDirectory() as folder:
            logits, new = run_transformers(make_folder(Path(folder), config_of(name)))
        np.savez_compressed(GOLDEN / f"{name}.npz", logits=logits, new=new)
        print(name, logits.shape, new[0])
    if not sys.argv[1:]:
        write_random()


def write_random():
    """Write what transformers computes on the configurations of `random_configs`."""
    import random_configs

    with tempfile.TemporaryDirectory() as folder:
        arrays = random_configs.by_transformers(
            lambda fields: make_folder(Path(folder), fields)
        )
    np.savez_compressed(random_configs.FILE, **arrays)
    print(len(arrays), "random configurations")


if __name__ == "__main__":
    sys.exit(main())
