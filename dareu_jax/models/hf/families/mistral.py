"""Mistral and Zephyr: Llama with attention to a sliding window."""

from dareu_jax.models.hf.families.family import Family
from dareu_jax.registry import FAMILIES

FAMILIES.register("mistral", "Mistral, Zephyr")(
    Family(
        model_type="mistral",
        architecture="MistralForCausalLM",
        absent={"num_key_value_heads": 8, "sliding_window": 4096, "rms_norm_eps": 1e-6},
        must_be={},
        reads=("sliding_window",),
        read=lambda fields: {"sliding_window": fields.get("sliding_window")},
        write=lambda cfg: {"sliding_window": cfg.sliding_window},
    )
)
