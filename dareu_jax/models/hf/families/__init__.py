"""Model families: how a Hugging Face folder's names and fields map to the decoder."""

from dareu_jax.models.hf.families import llama, mistral, qwen2, qwen3
from dareu_jax.models.hf.families.family import Family, config_json, read_config
