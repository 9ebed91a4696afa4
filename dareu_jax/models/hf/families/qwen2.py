"""Qwen2 and Qwen2.5: biases on queries, keys and values."""

from collections.abc import Mapping
from typing import Any

from dareu_jax.errors import UserError
from dareu_jax.models.hf.families.family import Family
from dareu_jax.registry import FAMILIES

UNUSED = {"sliding_window": None, "use_sliding_window": False}


def window_of(fields: Mapping[str, Any]) -> int | None:
    """Return the sliding window of a Qwen model; None: every layer sees everything."""
    layers = int(fields["num_hidden_layers"])
    window = fields.get("sliding_window")
    if not fields.get("use_sliding_window", False) or window is None:
        return None
    first = int(fields["max_window_layers"])
    kinds = fields.get("layer_types") or ["sliding_attention"] * (layers - first)
    windowed = sum(kind == "sliding_attention" for kind in kinds)
    if windowed not in (0, layers):
        raise UserError(
            f"a sliding window on {windowed} of {layers} layers is not supported; "
            "supported: on all of them or on none"
        )
    return int(window) if windowed else None


def write_window(window: int | None, layers: int) -> dict[str, Any]:
    """Return the fields that `window_of` reads."""
    if window is None:
        return dict(UNUSED)
    return {
        "sliding_window": window,
        "use_sliding_window": True,
        "max_window_layers": 0,
        "layer_types": ["sliding_attention"] * layers,
    }


WINDOW_FIELDS = (
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
)

ABSENT = {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28}

FAMILIES.register("qwen2", "Qwen2, Qwen2.5")(
    Family(
        model_type="qwen2",
        architecture="Qwen2ForCausalLM",
        absent=ABSENT,
        must_be={"use_mrope": (False,)},
        reads=WINDOW_FIELDS,
        read=lambda fields: {"qkv_bias": True, "sliding_window": window_of(fields)},
        write=lambda cfg: write_window(cfg.sliding_window, cfg.layers),
        fits=lambda cfg: cfg.qkv_bias and not cfg.qk_norm,
    )
)
