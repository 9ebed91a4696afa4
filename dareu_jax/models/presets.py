"""Named decoder shapes, and how the configuration changes them."""

import dataclasses
from typing import Any

from dareu_jax.config import ModelConfig
from dareu_jax.errors import UserError
from dareu_jax.models.decoder import DecoderConfig
from dareu_jax.registry import MODELS

Sizes = tuple[int, ...]
FIELDS = ("layers", "embed", "heads", "kv_heads", "head_dim", "ffn")
LLAMA = {"vocab": 32_000, "norm_eps": 1e-5, "tied": False}
LLAMA3 = {
    "vocab": 128_256,
    "norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "rope_scaling": (
        ("factor", 32.0),
        ("high_freq_factor", 4.0),
        ("low_freq_factor", 1.0),
        ("original_max_position", 8192),
        ("type", "llama3"),
    ),
}
QWEN3 = {"vocab": 151_936, "rope_theta": 1e6, "qk_norm": True}
BFLOAT16 = {"param_dtype": "bfloat16", "compute_dtype": "bfloat16"}

OURS: dict[str, tuple[str, Sizes]] = {
    "decoder-40k": ("1 layer of 32: for tests", (1, 32, 2, 1, 16, 64)),
    "decoder-100k": ("2 layers of 48: a counterfactual prior", (2, 48, 3, 3, 16, 96)),
    "decoder-300k": ("2 layers of 96: an owner classifier", (2, 96, 6, 6, 16, 192)),
    "decoder-400k": ("3 layers of 96: the independent judge", (3, 96, 6, 6, 16, 192)),
    "decoder-1m": ("4 layers of 128: the quickstart's policy", (4, 128, 4, 4, 32, 384)),
    "decoder-5m": ("6 layers of 240: TOFU from scratch", (6, 240, 6, 6, 40, 640)),
}
"""Name -> description and `FIELDS`."""
KNOWN: dict[str, tuple[str, Sizes, dict[str, Any]]] = {
    "llama2-7b": ("Llama-2-7b", (32, 4096, 32, 32, 128, 11_008), LLAMA),
    "tinyllama-1.1b": ("TinyLlama-1.1B", (22, 2048, 32, 4, 64, 5632), LLAMA),
    "llama32-1b": ("Llama-3.2-1B", (16, 2048, 32, 8, 64, 8192), LLAMA3),
    "qwen3-8b": ("Qwen3-8B", (36, 4096, 32, 8, 128, 12_288), {**QWEN3, "tied": False}),
    "qwen3-0.6b": ("Qwen3-0.6B", (28, 1024, 16, 8, 128, 3072), QWEN3),
}
"""Name -> whose shape it is, `FIELDS`, and what that family has besides."""

for _name, (_about, _sizes) in OURS.items():
    MODELS.register(_name, _about)(dict(zip(FIELDS, _sizes, strict=True)))
for _name, (_model, _sizes, _more) in KNOWN.items():
    _shape = {**dict(zip(FIELDS, _sizes, strict=True)), **_more, **BFLOAT16}
    MODELS.register(_name, f"{_model}: a shape, not the weights")(_shape)


def decoder_config(cfg: ModelConfig, vocab: int) -> DecoderConfig:
    """Returns the preset's shape with the fields that ``cfg`` sets put over it."""
    given = cfg.model_dump(exclude={"preset", "path"}, exclude_none=True)
    if "rope_scaling" in given:
        given["rope_scaling"] = tuple(sorted(given["rope_scaling"].items()))
    return DecoderConfig(**{**MODELS.get(cfg.preset), **given, "vocab": vocab})


def over_imported(cfg: ModelConfig, shape: DecoderConfig, key: str) -> DecoderConfig:
    """Return an imported decoder's shape with dtypes, remat and attention as given."""
    given = cfg.model_dump(exclude={"preset", "path"}, exclude_none=True)
    wrong = sorted(set(given) - {"remat", "attention", "param_dtype", "compute_dtype"})
    if wrong:
        raise UserError(
            f"{key}.{wrong[0]} = {given[wrong[0]]!r}: the shape is that of the model "
            f"in {cfg.path}; take the key out"
        )
    return dataclasses.replace(shape, **given)
