"""Model families: how a Hugging Face folder's names and fields map to the decoder."""

from dareu_jax.models.hf.families import (
    gemma2,
    gemma3_text,
    gpt_neox,
    llama,
    mistral,
    olmo2,
    phi3,
    qwen2,
    qwen3,
    smollm3,
)
from dareu_jax.models.hf.families.family import Family, config_json, read_config
