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


def decoder_config(cfg: ModelConfig, vocab: int, dropout: float = 0.0) -> DecoderConfig:
    """Returns the preset's shape with the fields that ``cfg`` sets put over it."""
    shape = dict(MODELS.get(cfg.preset))
    given = cfg.model_dump(exclude={"preset", "path"}, exclude_none=True)
    if "rope_scaling" in given:
        given["rope_scaling"] = tuple(sorted(given["rope_scaling"].items()))
    shape.update(given)
    known = {field.name for field in dataclasses.fields(DecoderConfig)}
    kept = {name: value for name, value in shape.items() if name in known}
    return DecoderConfig(vocab=vocab, dropout=dropout, **kept)


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
