"""Named decoder shapes, and how the configuration changes them."""

import dataclasses

from dareu_jax.config import ModelConfig
from dareu_jax.errors import UserError
from dareu_jax.models.decoder import DecoderConfig
from dareu_jax.registry import MODELS


def _preset(name: str, about: str, **shape) -> None:
    MODELS.register(name, about)(shape)


_preset(
    "decoder-40k",
    "1 layer of 32: for tests",
    **{"layers": 1, "embed": 32, "heads": 2, "kv_heads": 1, "head_dim": 16},
    ffn=64,
)
_preset(
    "decoder-100k",
    "2 layers of 48: a counterfactual prior",
    **{"layers": 2, "embed": 48, "heads": 3, "kv_heads": 3, "head_dim": 16},
    ffn=96,
)
_preset(
    "decoder-300k",
    "2 layers of 96: an owner classifier",
    **{"layers": 2, "embed": 96, "heads": 6, "kv_heads": 6, "head_dim": 16},
    ffn=192,
)
_preset(
    "decoder-400k",
    "3 layers of 96: the independent judge",
    **{"layers": 3, "embed": 96, "heads": 6, "kv_heads": 6, "head_dim": 16},
    ffn=192,
)
_preset(
    "decoder-1m",
    "4 layers of 128: the quickstart's policy",
    **{"layers": 4, "embed": 128, "heads": 4, "kv_heads": 4, "head_dim": 32},
    ffn=384,
)
_preset(
    "decoder-5m",
    "6 layers of 240: TOFU from scratch",
    **{"layers": 6, "embed": 240, "heads": 6, "kv_heads": 6, "head_dim": 40},
    ffn=640,
)

BFLOAT16 = {"param_dtype": "bfloat16", "compute_dtype": "bfloat16"}
_preset(
    "llama2-7b",
    "Llama-2-7b: a shape, not the weights",
    **{"vocab": 32_000, "layers": 32, "embed": 4096, "heads": 32, "kv_heads": 32},
    **{"head_dim": 128, "ffn": 11_008, "norm_eps": 1e-5, "tied": False},
    **BFLOAT16,
)
_preset(
    "tinyllama-1.1b",
    "TinyLlama-1.1B: a shape, not the weights",
    **{"vocab": 32_000, "layers": 22, "embed": 2048, "heads": 32, "kv_heads": 4},
    **{"head_dim": 64, "ffn": 5632, "norm_eps": 1e-5, "tied": False},
    **BFLOAT16,
)
_preset(
    "llama32-1b",
    "Llama-3.2-1B: a shape, not the weights",
    **{"vocab": 128_256, "layers": 16, "embed": 2048, "heads": 32, "kv_heads": 8},
    **{"head_dim": 64, "ffn": 8192, "norm_eps": 1e-5, "rope_theta": 500_000.0},
    rope_scaling=(
        *(("factor", 32.0), ("high_freq_factor", 4.0), ("low_freq_factor", 1.0)),
        *(("original_max_position", 8192), ("type", "llama3")),
    ),
    **BFLOAT16,
)
_preset(
    "qwen3-8b",
    "Qwen3-8B: a shape, not the weights",
    **{"vocab": 151_936, "layers": 36, "embed": 4096, "heads": 32, "kv_heads": 8},
    **{"head_dim": 128, "ffn": 12_288, "rope_theta": 1e6, "qk_norm": True},
    tied=False,
    **BFLOAT16,
)
_preset(
    "qwen3-0.6b",
    "Qwen3-0.6B: a shape, not the weights",
    **{"vocab": 151_936, "layers": 28, "embed": 1024, "heads": 16, "kv_heads": 8},
    **{"head_dim": 128, "ffn": 3072, "rope_theta": 1e6, "qk_norm": True},
    **BFLOAT16,
)


def decoder_config(cfg: ModelConfig, vocab: int) -> DecoderConfig:
    """Returns the preset's shape with the fields that ``cfg`` sets put over it."""
    shape = dict(MODELS.get(cfg.preset))
    given = cfg.model_dump(exclude={"preset", "path"}, exclude_none=True)
    if "rope_scaling" in given:
        given["rope_scaling"] = tuple(sorted(given["rope_scaling"].items()))
    shape.update(given)
    known = {field.name for field in dataclasses.fields(DecoderConfig)}
    kept = {name: value for name, value in shape.items() if name in known}
    return DecoderConfig(**{**kept, "vocab": vocab})


def over_imported(cfg: ModelConfig, shape: DecoderConfig, key: str) -> DecoderConfig:
    """Returns an imported decoder's shape with dtypes and remat as ``key`` says.

    Raises:
      UserError: it asks for another shape.
    """
    given = cfg.model_dump(exclude={"preset", "path"}, exclude_none=True)
    wrong = sorted(set(given) - {"remat", "param_dtype", "compute_dtype"})
    if wrong:
        raise UserError(
            f"{key}.{wrong[0]} = {given[wrong[0]]!r}: the shape is that of the model "
            f"in {cfg.path}; take the key out"
        )
    return dataclasses.replace(shape, **given)
