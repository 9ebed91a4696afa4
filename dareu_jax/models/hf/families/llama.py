"""Llama 2, 3, 3.1 and 3.2, TinyLlama: no biases, rope scaling ``llama3``."""

from dareu_jax.models.hf.families.family import Family
from dareu_jax.registry import FAMILIES

FAMILIES.register("llama", "Llama 2, 3, 3.1, 3.2, TinyLlama")(
    Family(
        model_type="llama",
        architecture="LlamaForCausalLM",
        absent={"rms_norm_eps": 1e-6},
        must_be={"attention_bias": (False,)},
        reads=(),
        read=lambda fields: {},
        write=lambda cfg: {"attention_bias": False, "mlp_bias": False},
    )
)
