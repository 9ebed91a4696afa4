"""Qwen2 and Qwen2.5: biases on queries, keys and values."""

from collections.abc import Mapping
from typing import Any

from dareu_jax.models.decoder import DecoderConfig
from dareu_jax.models.hf.families.family import Family, read_windows, write_windows
from dareu_jax.registry import FAMILIES


def windows_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the decoder's fields for the sliding window of a Qwen model."""
    window = fields.get("sliding_window")
    if not fields.get("use_sliding_window", False) or window is None:
        return {}
    layers, first = int(fields["num_hidden_layers"]), int(fields["max_window_layers"])
    late = ["full_attention"] * min(first, layers)
    late += ["sliding_attention"] * (layers - len(late))
    return read_windows(fields.get("layer_types") or late, window, layers)


def window_fields(cfg: DecoderConfig) -> dict[str, Any]:
    """Return the fields that `windows_of` reads."""
    if cfg.sliding_window is None:
        return {"sliding_window": None, "use_sliding_window": False}
    kinds = write_windows(cfg)
    return {
        "sliding_window": cfg.sliding_window,
        "use_sliding_window": True,
        "max_window_layers": kinds.index("sliding_attention"),
        "layer_types": kinds,
    }


WINDOW_FIELDS = (
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
)

ABSENT = {
    "num_key_value_heads": 32,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "rms_norm_eps": 1e-6,
}

FAMILIES.register("qwen2", "Qwen2, Qwen2.5")(
    Family(
        model_type="qwen2",
        architecture="Qwen2ForCausalLM",
        absent=ABSENT,
        must_be={"use_mrope": (False,)},
        reads=WINDOW_FIELDS,
        read=lambda fields: {"qkv_bias": True, **windows_of(fields)},
        write=window_fields,
    )
)
