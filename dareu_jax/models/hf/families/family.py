"""What a family says, and the parts that every family shares.

One `Family` serves both directions: `read_config` and `config_json` are inverse, and so
are reading and writing weights by the one table of `weights_of`.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from dareu_jax.errors import UserError
from dareu_jax.models.decoder import DecoderConfig
from dareu_jax.registry import FAMILIES

Fields = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Weight:
    """A Hugging Face tensor and the parameter that holds it."""

    name: str  # with {layer} in it: one tensor per layer, stacked here
    path: str  # of the parameter, joined by /
    transpose: bool = False  # it is stored [out, in]; ours are [in, out]

    @property
    def per_layer(self) -> bool:
        """Whether the parameter stacks one tensor of each layer."""
        return "{layer}" in self.name


@dataclasses.dataclass(frozen=True)
class Family:
    """How one ``model_type`` of transformers maps to `DecoderConfig`."""

    model_type: str  # as in config.json, like the architecture
    architecture: str
    absent: Mapping[str, Any]  # what transformers takes a missing field to be
    must_be: Mapping[str, tuple]  # fields whose other values have other maths
    reads: tuple[str, ...]  # fields of config.json that `read` looks at
    read: Callable[[Fields], dict[str, Any]]  # fields that only this family has
    write: Callable[[DecoderConfig], dict[str, Any]]  # the way back
    fits: Callable[[DecoderConfig], bool]  # whether a decoder can be written so


SHAPE = {
    "vocab_size": "vocab",
    "num_hidden_layers": "layers",
    "hidden_size": "embed",
    "num_attention_heads": "heads",
    "intermediate_size": "ffn",
}
"""Fields that every config.json must have, and ours."""

MUST_BE: dict[str, tuple] = {
    "hidden_act": ("silu",),
    "mlp_bias": (False,),
    "partial_rotary_factor": (1.0,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "quantization_config": (None,),
}

MAPPED = {
    *SHAPE,
    "num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings",
    "rope_theta", "rope_scaling", "rope_parameters", "model_type",
    "original_max_position_embeddings", "layer_types",
}  # fmt: skip

COUNTS = (*SHAPE, "num_key_value_heads", "head_dim")
"""Fields that are whole numbers."""

NO_MATHS = {
    "architectures", "auto_map", "_name_or_path", "name_or_path", "bos_token_id",
    "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "torch_dtype",
    "dtype", "use_cache", "initializer_range", "pretraining_tp",
    "max_position_embeddings", "attention_dropout", "_attn_implementation",
    "output_attentions", "output_hidden_states", "return_dict", "tokenizer_class",
    "id2label", "label2id", "problem_type", "chunk_size_feed_forward",
    "unsloth_version", "unsloth_fixed", "_unsloth_fixed", "finetuning_task",
    "attn_implementation", "task_specific_params", "transformers_version",
}  # fmt: skip
"""Fields that change no logit of any decoder; others that nobody reads are named."""

ROPE_FIELDS = {
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_max_position_embeddings": "original_max_position",
    },
}
"""Scaling rules: field of config.json -> field of ours."""


def family_of(fields: Fields, where: str) -> Family:
    """Return the family of a ``config.json``; raise `UserError` where there is none."""
    kind, known = fields.get("model_type"), FAMILIES.names()
    if kind not in known:
        names = ", ".join(known)
        raise UserError(
            f"{where}: model_type = {kind!r} is not supported; known: {names}"
        )
    return FAMILIES.get(kind)


def read_config(
    fields: Fields, where: str, say: Callable[[str], None] = warnings.warn
) -> DecoderConfig:
    """Return the decoder of a ``config.json``; raise `UserError` for other maths.

    ``say`` is told once the names of fields that nothing here reads.
    """
    family = family_of(fields, where)
    fields = {**family.absent, **fields}
    _check_fields(family, fields, where, say)
    missing = [name for name in (*SHAPE, "rms_norm_eps") if fields.get(name) is None]
    if missing:
        raise UserError(f"{where}: lacks {', '.join(missing)}")
    _check_numbers(fields, where)
    shape = {ours: fields[name] for name, ours in SHAPE.items()}
    theta, scaling = _read_rope(fields, where)
    heads = shape["heads"]
    return DecoderConfig(
        **shape,
        kv_heads=fields.get("num_key_value_heads") or heads,
        head_dim=fields.get("head_dim") or shape["embed"] // heads,
        norm_eps=fields["rms_norm_eps"],
        tied=bool(fields.get("tie_word_embeddings", False)),
        rope_theta=theta,
        rope_scaling=scaling,
        **family.read(fields),
    )


def config_json(cfg: DecoderConfig, max_positions: int) -> dict[str, Any]:
    """Return the ``config.json`` of ``cfg``; raise `UserError` if no family fits."""
    families = map(FAMILIES.get, FAMILIES.names())
    family = next((family for family in families if family.fits(cfg)), None)
    if family is None:
        raise UserError(
            "no Hugging Face family has a decoder with "
            f"qk_norm = {cfg.qk_norm}, qkv_bias = {cfg.qkv_bias} and "
            f"sliding_window = {cfg.sliding_window}"
        )
    shape = {name: getattr(cfg, ours) for name, ours in SHAPE.items()}
    return {
        "model_type": family.model_type,
        "architectures": [family.architecture],
        **shape,
        "num_key_value_heads": cfg.kv_heads,
        "head_dim": cfg.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": cfg.norm_eps,
        "tie_word_embeddings": cfg.tied,
        "max_position_embeddings": max_positions,
        **_write_rope(cfg),
        **family.write(cfg),
    }


def weights_of(cfg: DecoderConfig) -> tuple[Weight, ...]:
    """Return the table of every tensor of a decoder of any family."""
    layer, attn, mlp = "model.layers.{layer}.", "layers/attention/", "layers/mlp/"
    table = [
        Weight("model.embed_tokens.weight", "embed/embedding"),
        Weight("model.norm.weight", "final_norm/scale"),
        Weight(f"{layer}input_layernorm.weight", "layers/attention_norm/scale"),
        Weight(f"{layer}post_attention_layernorm.weight", "layers/mlp_norm/scale"),
    ]
    for one in "qkvo":
        name = f"{layer}self_attn.{one}_proj."
        table.append(Weight(f"{name}weight", f"{attn}{one}/kernel", transpose=True))
        if cfg.qkv_bias and one != "o":
            table.append(Weight(f"{name}bias", f"{attn}{one}/bias"))
    for one in ("gate", "up", "down"):
        name = f"{layer}mlp.{one}_proj.weight"
        table.append(Weight(name, f"{mlp}{one}/kernel", transpose=True))
    if cfg.qk_norm:
        for one in "qk":
            name = f"{layer}self_attn.{one}_norm.weight"
            table.append(Weight(name, f"{attn}{one}_norm/scale"))
    if not cfg.tied:
        table.append(Weight("lm_head.weight", "lm_head/kernel", transpose=True))
    return tuple(table)


def _check_fields(
    family: Family, fields: Fields, where: str, say: Callable[[str], None]
) -> None:
    """Raise `UserError` for a field that transformers computes with and we do not."""
    rules = {**MUST_BE, **family.must_be}
    for name, value in fields.items():
        if name in rules and value not in rules[name]:
            allowed = " or ".join(repr(x) for x in rules[name])
            raise UserError(
                f"{where}: {name} = {value!r} is not supported for "
                f"{family.model_type}; supported: {allowed}"
            )
    kinds = fields.get("layer_types") or []
    if "layer_types" not in family.reads and set(kinds) - {"full_attention"}:
        raise UserError(
            f"{where}: layer_types = {kinds!r:.60} is not supported for "
            f"{family.model_type}; supported: full_attention"
        )
    known = {*rules, *MAPPED, *family.reads, *NO_MATHS}
    others = [n for n, x in fields.items() if n not in known and x not in (None, False)]
    if others:
        say(
            f"{where}: {', '.join(others)} {'is' if len(others) == 1 else 'are'} not "
            f"read; no decoder of {family.model_type} computes with "
            f"{'it' if len(others) == 1 else 'them'}"
        )


def _check_numbers(fields: Fields, where: str) -> None:
    """Raise `UserError` where a size is no whole number or a number is none."""
    for name in COUNTS:
        value = fields.get(name)
        if value is not None and (type(value) is not int or value < 1):
            raise UserError(
                f"{where}: {name} = {value!r} must be a whole number over 0"
            )
    _positive(fields["rms_norm_eps"], "rms_norm_eps", where)
    tied = fields.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        raise UserError(
            f"{where}: tie_word_embeddings = {tied!r} must be true or false"
        )


def _positive(value: Any, name: str, where: str) -> float:
    """Return a number over 0; raise `UserError` for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:
        raise UserError(f"{where}: {name} = {value!r} must be a number over 0")
    return float(value)


def _read_rope(fields: Fields, where: str) -> tuple[float, tuple | None]:
    """Return theta and the scaling rule, from either spelling.

    Where both are given, ``rope_scaling`` holds, as in transformers.
    """
    name = "rope_scaling" if fields.get("rope_scaling") else "rope_parameters"
    rope = fields.get(name) or {}
    if not isinstance(rope, Mapping) or any(
        isinstance(x, Mapping) for x in rope.values()
    ):
        raise UserError(
            f"{where}: {name} = {rope!r:.80} is not supported: one rule for all"
        )
    top = fields.get("rope_theta", 10_000.0)
    theta = _positive(rope.get("rope_theta", top), "rope_theta", where)
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        part = rope["partial_rotary_factor"]
        raise UserError(
            f"{where}: partial_rotary_factor = {part!r} is not supported: 1.0"
        )
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    names = ROPE_FIELDS.get(kind) if isinstance(kind, str) else None
    if names is None:
        known = ", ".join(["default", *ROPE_FIELDS])
        raise UserError(
            f"{where}: rope scaling {kind!r} is not supported; known: {known}"
        )
    longest = fields.get("max_position_embeddings")
    rope = {"original_max_position_embeddings": longest, **rope}
    if top := fields.get("original_max_position_embeddings"):
        rope["original_max_position_embeddings"] = top
    rule: dict[str, Any] = {
        ours: _positive(rope.get(theirs), f"{name}.{theirs}", where)
        for theirs, ours in names.items()
    }
    return theta, tuple(sorted({"type": kind, **rule}.items()))


def _write_rope(cfg: DecoderConfig) -> dict[str, Any]:
    """Return both spellings: transformers 5 reads the new one, vLLM the old one."""
    rule: dict[str, Any] = dict(cfg.rope_scaling or {"type": "default"})
    names = ROPE_FIELDS.get(rule["type"], {})
    rope = {"rope_type": rule["type"]}
    rope |= {name: rule[ours] for name, ours in names.items()}
    return {
        "rope_theta": cfg.rope_theta,
        "rope_scaling": rope if names else None,
        "rope_parameters": {**rope, "rope_theta": cfg.rope_theta},
    }
