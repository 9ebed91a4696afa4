"""Model families: how a Hugging Face folder's names and fields map to the decoder."""

from dareu_jax.models.hf.families import llama as llama
from dareu_jax.models.hf.families import mistral as mistral
from dareu_jax.models.hf.families import qwen2 as qwen2
from dareu_jax.models.hf.families import qwen3 as qwen3
from dareu_jax.models.hf.families.family import (
    Family,
    Weight,
    config_json,
    read_config,
    weights_of,
)
