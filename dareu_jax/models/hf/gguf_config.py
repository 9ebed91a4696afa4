"""The fields of ``config.json`` that a GGUF file's metadata say."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dareu_jax.errors import UserError

FIELDS = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "embedding_length": "hidden_size",
    "rope.freq_base": "rope_theta",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "vocab_size": "vocab_size",
}
"""Key behind the architecture's name -> field, as transformers reads them."""
GEMMA3_FIELDS = {
    **FIELDS,
    "attention.sliding_window": "sliding_window",
    "attention.sliding_window_pattern": "sliding_window_pattern",
    "rope.freq_base_swa": "rope_local_base_freq",
}
IDS = {
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "unknown_token_id": "unk_token_id",
    "padding_token_id": "pad_token_id",
}
MODELS = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM"),
}
ROPE_FACTORS = "rope_freqs.weight"
LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""Of Llama 3.1 and 3.2; a file has only what follows from them and the factor."""
READ = (
    "rope.dimension_count",
    "attention.value_length",
    "attention.causal",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scale_linear",
    "rope.scaling.original_context_length",
    "attention.layer_norm_epsilon",
    "rope.scaling.finetuned",
)
MATHS = (
    "attention.",
    "rope.",
    "expert_count",
    "logit_scale",
    "embedding_scale",
    "residual_scale",
    "attn_logit_softcapping",
    "final_logit_softcapping",
)
"""Keys that begin so change what a model computes."""
GEMMA3_SCALAR, GEMMA3_27B_LAYERS = 256, 62
"""``query_pre_attn_scalar`` of all but the 27B, and the layers that only it has."""


def config_fields(
    metadata: Mapping[str, Any],
    *,
    tied: bool,
    rope_factors: np.ndarray | None,
    where: str,
) -> dict[str, Any]:
    """Return the ``config.json`` of a GGUF file.

    Raises `UserError` for a key that would change what the model computes and that is
    not supported.
    """
    name = metadata["general.architecture"]
    prefix = f"{name}."
    own = {k[len(prefix) :]: v for k, v in metadata.items() if k.startswith(prefix)}
    table = GEMMA3_FIELDS if name == "gemma3" else FIELDS
    _check_keys(own, table, prefix, where)
    model_type, architecture = MODELS[name]
    fields: dict[str, Any] = {"model_type": model_type, "architectures": [architecture]}
    fields |= {field: own[key] for key, field in table.items() if key in own}
    fields.setdefault("vocab_size", len(metadata.get("tokenizer.ggml.tokens", ())))
    heads = fields.get("num_attention_heads")
    fields.setdefault("num_key_value_heads", heads)
    fields["tie_word_embeddings"] = tied
    ids = {field: metadata.get(f"tokenizer.ggml.{key}") for key, field in IDS.items()}
    fields |= {field: token for field, token in ids.items() if token is not None}
    _set_head_size(fields, own, where)
    if scaling := _rope_scaling(fields, own, rope_factors, where):
        fields["rope_scaling"] = scaling
    return fields | (_gemma3(fields) if name == "gemma3" else {})


def llama3_factors(size: int, theta: float, factor: float) -> np.ndarray:
    """Return what Llama 3.1 divides each rotary frequency by, ``[size / 2]``.

    1 for wavelengths below 8192 / 4, ``factor`` for those above 8192, and between
    them 1 / ((1 - s) / factor + s) with s = (8192 / wavelength - 1) / 3.
    """
    original = LLAMA3["original_max_position_embeddings"]
    wavelength = 2 * math.pi * theta ** (np.arange(0, size, 2) / size)
    low, high = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
    s = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
    return 1 / ((1 - s) / factor + s)


def _check_keys(
    own: Mapping[str, Any], table: Mapping[str, str], prefix: str, where: str
) -> None:
    """Raise `UserError` for keys with other maths, and lists where one number is."""
    for key, value in own.items():
        known = key in table or key in READ
        if not known and key.startswith(MATHS) and value not in (0, "", "none"):
            raise UserError(f"{where}: {prefix}{key} = {value!r} is not supported")
        if key in FIELDS and isinstance(value, list):
            raise UserError(
                f"{where}: {prefix}{key} differs from layer to layer; "
                "one value for all layers is supported"
            )
        if key in FIELDS and (isinstance(value, str) or not 0 < value < math.inf):
            raise UserError(f"{where}: {prefix}{key} = {value!r}; it must be positive")


def _set_head_size(fields: dict[str, Any], own: Mapping[str, Any], where: str) -> None:
    """Set ``head_dim``; raise `UserError` where parts of a head differ in size."""
    sizes = {
        key: own[key]
        for key in ("attention.key_length", "attention.value_length")
        if key in own
    }
    if rotary := own.get("rope.dimension_count"):
        sizes["rope.dimension_count"] = rotary
    if len(set(sizes.values())) > 1:
        said = ", ".join(f"{key} = {size}" for key, size in sizes.items())
        raise UserError(f"{where}: {said}; supported: all the same")
    if sizes:
        fields["head_dim"] = next(iter(sizes.values()))


def _rope_scaling(
    fields: Mapping[str, Any],
    own: Mapping[str, Any],
    factors: np.ndarray | None,
    where: str,
) -> dict[str, Any] | None:
    """Return the scaling rule that metadata or a tensor of factors say."""
    kind = own.get("rope.scaling.type", "none")
    factor = own.get("rope.scaling.factor", own.get("rope.scale_linear", 1.0))
    if kind == "none" and own.get("rope.scale_linear", 1.0) != 1.0:
        kind = "linear"
    if factors is not None:
        return _llama3(fields, factors, where)
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return None
    rule = {"rope_type": kind, "factor": factor}
    original = own.get("rope.scaling.original_context_length")
    if original and kind != "linear":
        rule["original_max_position_embeddings"] = original
    return rule


def _llama3(
    fields: Mapping[str, Any], factors: np.ndarray, where: str
) -> dict[str, Any] | None:
    """Return the rule of Llama 3 that a tensor of factors follows from."""
    factor, size = float(factors.max()), 2 * factors.size
    theta = fields.get("rope_theta", 10_000.0)
    if factor == 1.0 and (factors == 1.0).all():
        return None
    if not np.allclose(llama3_factors(size, theta, factor), factors, rtol=1e-3):
        raise UserError(
            f"{where}: {ROPE_FACTORS} has other factors than Llama 3.1 and 3.2 have"
        )
    return {"rope_type": "llama3", "factor": factor, **LLAMA3}


def _gemma3(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return what every Gemma 3 has and no file says."""
    scalar = GEMMA3_SCALAR
    if fields.get("num_hidden_layers") == GEMMA3_27B_LAYERS:
        scalar = fields["hidden_size"] // fields["num_attention_heads"]
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scalar,
        "sliding_window_pattern": fields.get("sliding_window_pattern", 6),
        "rope_local_base_freq": fields.get("rope_local_base_freq", 10_000.0),
        "rope_theta": fields.get("rope_theta", 1_000_000.0),
    }
