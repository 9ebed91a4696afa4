"""Qwen3: normalised queries and keys, a head size of its own."""

from dareu_jax.models.hf.families import qwen2
from dareu_jax.models.hf.families.family import Family
from dareu_jax.registry import FAMILIES

FAMILIES.register("qwen3", "Qwen3")(
    Family(
        model_type="qwen3",
        architecture="Qwen3ForCausalLM",
        absent={**qwen2.ABSENT, "head_dim": 128},
        must_be={"attention_bias": (False,)},
        reads=qwen2.WINDOW_FIELDS,
        read=lambda fields: {"qk_norm": True, **qwen2.windows_of(fields)},
        write=lambda cfg: {"attention_bias": False, **qwen2.window_fields(cfg)},
    )
)
