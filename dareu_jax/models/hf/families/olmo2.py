"""OLMo 2: norms behind the blocks, queries and keys normalised over all heads."""

from dareu_jax.models.hf.families.family import Family, read_biases
from dareu_jax.registry import FAMILIES

SHAPE = {"norm_place": "after", "qk_norm": True, "qk_norm_whole": True}

FAMILIES.register("olmo2", "OLMo 2")(
    Family(
        model_type="olmo2",
        architecture="Olmo2ForCausalLM",
        absent={"rms_norm_eps": 1e-5},
        must_be={},
        reads=("attention_bias",),
        read=lambda fields: {**SHAPE, **read_biases(fields)},
        write=lambda cfg: {"attention_bias": cfg.qkv_bias},
    )
)
