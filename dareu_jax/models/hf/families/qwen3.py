"""Qwen3: normalised queries and keys, a head size of its own."""

from dareu_jax.models.hf.families.family import Family
from dareu_jax.models.hf.families.qwen2 import (
    ABSENT,
    WINDOW_FIELDS,
    window_of,
    write_window,
)
from dareu_jax.registry import FAMILIES

FAMILIES.register("qwen3", "Qwen3")(
    Family(
        model_type="qwen3",
        architecture="Qwen3ForCausalLM",
        absent={**ABSENT, "head_dim": 128},
        must_be={"attention_bias": (False,)},
        reads=WINDOW_FIELDS,
        read=lambda fields: {"qk_norm": True, "sliding_window": window_of(fields)},
        write=lambda cfg: {
            "attention_bias": False,
            **write_window(cfg.sliding_window, cfg.layers),
        },
        fits=lambda cfg: cfg.qk_norm and not cfg.qkv_bias,
    )
)
