"""SmolLM3: Llama whose every fourth layer knows no positions."""

from collections.abc import Mapping
from typing import Any

from dareu_jax.errors import UserError
from dareu_jax.models.decoder import DecoderConfig
from dareu_jax.models.hf.families.family import (
    Family,
    read_biases,
    read_windows,
    write_windows,
)
from dareu_jax.registry import FAMILIES


def rotated_of(fields: Mapping[str, Any]) -> tuple[bool, ...]:
    """Return which layers rotate queries and keys; 1 in ``no_rope_layers`` says so."""
    layers = range(fields["num_hidden_layers"])
    every, given = fields.get("no_rope_layer_interval"), fields.get("no_rope_layers")
    if given is None:
        if type(every) is not int or every < 1:
            raise UserError(f"no_rope_layer_interval = {every!r} must be 1 or more")
        return tuple((layer + 1) % every != 0 for layer in layers)
    if not isinstance(given, list) or len(given) < len(layers):
        raise UserError(
            f"no_rope_layers = {given!r:.60} must have a number for each of "
            f"{len(layers)} layers"
        )
    return tuple(bool(given[layer]) for layer in layers)


def read(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the decoder's fields that SmolLM3 sets."""
    rotated, window = rotated_of(fields), fields.get("sliding_window")
    is_windowed = fields.get("use_sliding_window", False) and window is not None
    kinds = ["full_attention" if turned else "sliding_attention" for turned in rotated]
    usual = kinds if is_windowed else ["full_attention"] * len(kinds)
    return {
        "rotated": None if all(rotated) else rotated,
        "mlp_bias": bool(fields.get("mlp_bias", False)),
        **read_biases(fields),
        **read_windows(fields.get("layer_types") or usual, window, len(rotated)),
    }


def write(cfg: DecoderConfig) -> dict[str, Any]:
    """Return the fields that `read` reads."""
    return {
        "no_rope_layers": [int(x) for x in cfg.rotated or (True,) * cfg.layers],
        "attention_bias": cfg.qkv_bias,
        "mlp_bias": cfg.mlp_bias,
        "use_sliding_window": cfg.sliding_window is not None,
        "sliding_window": cfg.sliding_window,
        "layer_types": write_windows(cfg),
    }


FAMILIES.register("smollm3", "SmolLM3")(
    Family(
        model_type="smollm3",
        architecture="SmolLM3ForCausalLM",
        absent={
            "num_key_value_heads": 4,
            "tie_word_embeddings": True,
            "rope_theta": 2e6,
            "rms_norm_eps": 1e-6,
            "no_rope_layer_interval": 4,
        },
        must_be={},
        reads=(
            "attention_bias",
            "mlp_bias",
            "layer_types",
            "sliding_window",
            "use_sliding_window",
            "no_rope_layers",
            "no_rope_layer_interval",
        ),
        read=read,
        write=write,
    )
)
