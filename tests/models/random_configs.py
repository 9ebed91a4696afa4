"""Random configurations of every family, over every field that the family reads."""

import zlib

import numpy as np
from make_golden import GOLDEN, LLAMA3, config_of, run_transformers

COUNT = 10
FILE = GOLDEN / "random.npz"
"""Logits of the second text of `make_golden.inputs`, by ``FAMILY/NUMBER``."""
BASES = {
    "llama": "llama2",
    "mistral": "mistral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "olmo2": "olmo2",
    "smollm3": "smollm3",
    "phi3": "phi3",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "gpt_neox": "pythia",
}
ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "gelu_new", "gelu_fast", "relu")
LAYERS = 3


class Draw:
    """Random values of one configuration."""

    def __init__(self, family, number):
        seed = zlib.crc32(f"{family}/{number}".encode())
        self.rng = np.random.default_rng(seed)

    def one(self, *values):
        return values[int(self.rng.integers(len(values)))]

    def flags(self, count):
        return [bool(x) for x in self.rng.integers(0, 2, count)]


def configs(family):
    """The family's `COUNT` configurations; the same at every call."""
    return [config(family, number) for number in range(COUNT)]


def config(family, number):
    draw = Draw(family, number)
    base = {
        name: value
        for name, value in config_of(BASES[family]).items()
        if name in ("model_type", "architectures", "vocab_size", "pad_token_id")
        or name in ("bos_token_id", "eos_token_id", "max_position_embeddings")
    }
    eps = "layer_norm_eps" if family == "gpt_neox" else "rms_norm_eps"
    return {
        **base,
        "hidden_size": 24,
        "intermediate_size": draw.one(20, 40),
        "num_hidden_layers": LAYERS,
        "tie_word_embeddings": draw.one(True, False),
        eps: draw.one(1e-6, 1e-5, 1e-3),
        **heads(family, draw),
        **rope(family, draw),
        **OWN[family](draw),
    }


def heads(family, draw):
    count = draw.one(2, 4)
    if family == "gpt_neox":
        return {"num_attention_heads": draw.one(1, 3)}
    own = {"num_attention_heads": count, "num_key_value_heads": draw.one(1, 2, count)}
    always = ("gemma2", "gemma3_text", "qwen3", "phi3")
    if family in always or draw.one(True, False):
        own["head_dim"] = draw.one(8, 16)
    return own


def rope(family, draw):
    """A rule for positions, in the old spelling or the new one."""
    theta = draw.one(100.0, 1e4, 1e6)
    if family == "gemma3_text":
        return gemma3_rope(theta, draw)
    if family == "gpt_neox":
        share = draw.one(0.25, 0.5, 1.0)
        new = {"rope_type": "default", "rope_theta": theta}
        return draw.one(
            {"rotary_emb_base": int(theta), "rotary_pct": share},
            {"rope_parameters": {**new, "partial_rotary_factor": share}},
        )
    if family == "phi3":
        own = {"partial_rotary_factor": draw.one(0.5, 1.0)}
        new = {"rope_type": "default", "rope_theta": theta, **own}
        return draw.one({"rope_theta": theta, **own}, {"rope_parameters": new})
    rule = draw.one({"rope_type": "default"}, {"rope_type": "linear", "factor": 3.0})
    rule = draw.one(rule, LLAMA3)
    if draw.one(True, False):
        return {"rope_parameters": {**rule, "rope_theta": theta}}
    old = None if rule["rope_type"] == "default" else rule
    return {"rope_theta": theta, "rope_scaling": old}


def gemma3_rope(theta, draw):
    local = draw.one(10.0, 1e4)
    rule = draw.one({"rope_type": "default"}, {"rope_type": "linear", "factor": 8.0})
    if draw.one(True, False):
        windowed = {"rope_type": "default", "rope_theta": local}
        full = {**rule, "rope_theta": theta}
        own = {"full_attention": full, "sliding_attention": windowed}
        return {"rope_parameters": own}
    old = None if rule["rope_type"] == "default" else rule
    return {"rope_theta": theta, "rope_scaling": old, "rope_local_base_freq": local}


def kinds(draw):
    """Types of layers, at least one of them with a window."""
    windowed = [True, *draw.flags(LAYERS - 1)]
    draw.rng.shuffle(windowed)
    return ["sliding_attention" if one else "full_attention" for one in windowed]


def qwen_windows(draw):
    own = {"use_sliding_window": draw.one(True, True, False), "sliding_window": 4}
    own["max_window_layers"] = draw.one(0, 1, 2, 9)
    if own["use_sliding_window"] and draw.one(True, False):
        own["layer_types"] = kinds(draw)
    return own


def gemma(draw):
    own = {
        "attention_bias": draw.one(True, False),
        "hidden_activation": draw.one(*ACTIVATIONS),
        "query_pre_attn_scalar": draw.one(5, 16),
        "final_logit_softcapping": draw.one(None, 5.0, 30.0),
        "sliding_window": draw.one(3, 6),
    }
    return own | ({"layer_types": kinds(draw)} if draw.one(True, False) else {})


def gemma2(draw):
    return {**gemma(draw), "attn_logit_softcapping": draw.one(None, 1.0, 50.0)}


def gemma3(draw):
    return {**gemma(draw), "sliding_window_pattern": draw.one(1, 2, 3)}


def smollm3(draw):
    own = {name: draw.one(True, False) for name in ("attention_bias", "mlp_bias")}
    own["use_sliding_window"] = draw.one(True, False)
    own["sliding_window"] = draw.one(3, 6) if own["use_sliding_window"] else None
    if own["use_sliding_window"] and draw.one(True, False):
        own["layer_types"] = kinds(draw)
    if draw.one(True, False):
        return {**own, "no_rope_layer_interval": draw.one(1, 2, 3)}
    return {**own, "no_rope_layers": [int(x) for x in draw.flags(LAYERS)]}


def gpt_neox(draw):
    return {
        "attention_bias": draw.one(True, False),
        "use_parallel_residual": draw.one(True, False),
        "hidden_act": draw.one(*ACTIVATIONS),
    }


def window(draw):
    return {"sliding_window": draw.one(None, 3, 6)}


OWN = {
    "llama": lambda draw: {"attention_bias": False, "mlp_bias": False},
    "mistral": window,
    "qwen2": qwen_windows,
    "qwen3": lambda draw: {"attention_bias": False, **qwen_windows(draw)},
    "olmo2": lambda draw: {"attention_bias": draw.one(True, False)},
    "smollm3": smollm3,
    "phi3": window,
    "gemma2": gemma2,
    "gemma3_text": gemma3,
    "gpt_neox": gpt_neox,
}


def by_transformers(make, families=tuple(BASES)):
    """``{FAMILY/NUMBER: logits [7, V]}``; ``make(fields)`` makes a folder of them."""
    out = {}
    for family in families:
        for number, fields in enumerate(configs(family)):
            logits, _ = run_transformers(make(fields))
            out[f"{family}/{number}"] = logits[1, -7:]
    return out
