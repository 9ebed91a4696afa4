"""What a family says, and the parts that every family shares.

One `Family` serves both directions: `read_config` and `config_json` are inverse, and so
are reading and writing weights by the one table of `weights_of`.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dareu_jax.errors import UserError
from dareu_jax.models.decoder import DecoderConfig
from dareu_jax.models.hf.families.table import Weight, usual_weights
from dareu_jax.registry import FAMILIES

Fields = Mapping[str, Any]


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


@dataclasses.dataclass(frozen=True)
class Family:
    """How one ``model_type`` of transformers maps to `DecoderConfig`."""

    model_type: str  # as in config.json, like the architecture
    architecture: str
    absent: Mapping[str, Any]  # what transformers takes a missing field to be
    must_be: Mapping[str, tuple]  # fields whose other values have other maths
    reads: tuple[str, ...]  # fields of config.json that `read` looks at
    read: Callable[[Fields], dict[str, Any]]  # fields that not all families have
    write: Callable[[DecoderConfig], dict[str, Any]]  # the way back
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # fields that all families have under a name of this one's own: usual -> own
    respell: Callable[[Fields], Fields] = dict  # as other families spell it
    rope_types: tuple[str, ...] = tuple(ROPE_FIELDS)  # beside "default"
    weights: Callable[[DecoderConfig], tuple[Weight, ...]] = usual_weights

    def own(self, name: str) -> str:
        """Return the name that this family has for a field of all families."""
        return self.names.get(name, name)


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

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}
"""Activations of transformers and ours; of several with one meaning the first is
written."""


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
    fields: Fields, where: str, say: Callable[[str], object] = warnings.warn
) -> DecoderConfig:
    """Return the decoder of a ``config.json``; raise `UserError` for other maths.

    ``say`` is told once the names of fields that nothing here reads.
    """
    family = family_of(fields, where)
    fields = {**family.absent, **fields}
    _check_fields(family, fields, where, say)
    fields = _placed(family.respell, fields, where)
    eps = family.own("rms_norm_eps")
    missing = [name for name in (*SHAPE, eps) if fields.get(name) is None]
    if missing:
        raise UserError(f"{where}: lacks {', '.join(missing)}")
    _check_numbers(fields, eps, where)
    shape = {ours: fields[name] for name, ours in SHAPE.items()}
    heads = shape["heads"]
    shape |= {
        "kv_heads": fields.get("num_key_value_heads") or heads,
        "head_dim": fields.get("head_dim") or shape["embed"] // heads,
        "norm_eps": fields[eps],
        "tied": bool(fields.get("tie_word_embeddings", False)),
        "activation": ACTIVATIONS[fields.get(family.own("hidden_act"), "silu")],
        "family": family.model_type,
    }
    shape |= _read_rope(family, fields, where)
    shape |= _placed(family.read, fields, where)
    return _placed(lambda shape: DecoderConfig(**shape), shape, where)


def _placed(read: Callable[[Fields], Any], fields: Fields, where: str) -> Any:
    """Return ``read(fields)``; its `UserError` says where the fields are."""
    try:
        return read(fields)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def family_to_write(cfg: DecoderConfig) -> Family:
    """Return the family that ``cfg`` was read from, or the first that can hold it.

    Raises `UserError` where none can.
    """
    names = [cfg.family, *FAMILIES.names()]
    known = (FAMILIES.get(name) for name in names if name in FAMILIES.names())
    family = next((family for family in known if _holds(family, cfg)), None)
    if family is not None:
        return family
    own = {f.name: getattr(cfg, f.name) for f in dataclasses.fields(cfg) if f.compare}
    given = {name: x for name, x in own.items() if x != getattr(DecoderConfig, name, x)}
    said = ", ".join(f"{name} = {value}" for name, value in given.items())
    raise UserError(f"no Hugging Face family has a decoder with {said}")


def _holds(family: Family, cfg: DecoderConfig) -> bool:
    """Return whether a decoder written as this family is read as the same."""
    try:
        read = read_config(_written(family, cfg, 1), "", say=lambda said: None)
    except UserError:
        return False
    kept = {name: getattr(cfg, name) for name in NOT_WRITTEN}
    return dataclasses.replace(read, **kept) == cfg


NOT_WRITTEN = (
    "dropout", "lora_alpha", "lora_dropout", "remat", "attention",
    "param_dtype", "compute_dtype",
)  # fmt: skip
"""Fields of a decoder that say how it is trained."""


def config_json(cfg: DecoderConfig, max_positions: int) -> dict[str, Any]:
    """Return the ``config.json`` of ``cfg``; raise `UserError` if no family fits."""
    return _written(family_to_write(cfg), cfg, max_positions)


def _written(family: Family, cfg: DecoderConfig, max_positions: int) -> dict[str, Any]:
    """Return the ``config.json`` of ``cfg`` as a family has it."""
    theirs = next(name for name, ours in ACTIVATIONS.items() if ours == cfg.activation)
    return {
        "model_type": family.model_type,
        "architectures": [family.architecture],
        **{name: getattr(cfg, ours) for name, ours in SHAPE.items()},
        "num_key_value_heads": cfg.kv_heads,
        "head_dim": cfg.head_dim,
        family.own("hidden_act"): theirs,
        family.own("rms_norm_eps"): cfg.norm_eps,
        "tie_word_embeddings": cfg.tied,
        "max_position_embeddings": max_positions,
        **_write_rope(family, cfg),
        **family.write(cfg),
    }


def weights_of(cfg: DecoderConfig) -> tuple[Weight, ...]:
    """Return the table of every tensor of a decoder, as its family names them."""
    return family_to_write(cfg).weights(cfg)


def read_windows(kinds: Sequence[str], window: Any, layers: int) -> dict[str, Any]:
    """Return the decoder's fields for the ``layer_types`` of a ``config.json``."""
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise UserError(
            f"layer_types = {kinds!r:.60} must name each of {layers} layers"
        )
    known = ("full_attention", "sliding_attention")
    if other := next((kind for kind in kinds if kind not in known), None):
        raise UserError(
            f"layer_types has {other!r}, which is not supported; known: "
            f"{', '.join(known)}"
        )
    windowed = tuple(kind == "sliding_attention" for kind in kinds)
    if not any(windowed):
        return {}
    if type(window) is not int or window < 1:
        raise UserError(f"sliding_window = {window!r} must be a whole number over 0")
    return {"sliding_window": window, "windowed": None if all(windowed) else windowed}


def write_windows(cfg: DecoderConfig) -> list[str]:
    """Return the ``layer_types`` of a decoder."""
    everywhere = (cfg.sliding_window is not None,) * cfg.layers
    kinds = ("full_attention", "sliding_attention")
    return [kinds[windowed] for windowed in cfg.windowed or everywhere]


def read_biases(fields: Fields) -> dict[str, Any]:
    """Return the decoder's fields for ``attention_bias``."""
    has_bias = bool(fields.get("attention_bias", False))
    return {"qkv_bias": has_bias, "o_bias": has_bias}


def positive(fields: Fields, name: str) -> Any:
    """Return a field that is a number over 0; raise `UserError` for anything else."""
    value: Any = fields.get(name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:
        raise UserError(f"{name} = {value!r} must be a number over 0")
    return value


def _check_fields(
    family: Family, fields: Fields, where: str, say: Callable[[str], object]
) -> None:
    """Raise `UserError` for a field that transformers computes with and we do not."""
    usual = {name: x for name, x in MUST_BE.items() if name not in family.reads}
    rules = {**usual, **family.must_be}
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
    known = {*rules, *MAPPED, *family.names.values(), *family.reads, *NO_MATHS}
    others = [n for n, x in fields.items() if n not in known and x not in (None, False)]
    if others:
        say(
            f"{where}: {', '.join(others)} {'is' if len(others) == 1 else 'are'} not "
            f"read; no decoder of {family.model_type} computes with "
            f"{'it' if len(others) == 1 else 'them'}"
        )


def _check_numbers(fields: Fields, eps: str, where: str) -> None:
    """Raise `UserError` where a size is no whole number or a number is none."""
    for name in COUNTS:
        value = fields.get(name)
        if value is not None and (type(value) is not int or value < 1):
            raise UserError(
                f"{where}: {name} = {value!r} must be a whole number over 0"
            )
    _positive(fields[eps], eps, where)
    tied = fields.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        raise UserError(
            f"{where}: tie_word_embeddings = {tied!r} must be true or false"
        )


def _positive(value: Any, name: str, where: str) -> float:
    """Return a number over 0; raise `UserError` for anything else."""
    return float(_placed(lambda fields: positive(fields, name), {name: value}, where))


def _read_rope(family: Family, fields: Fields, where: str) -> dict[str, Any]:
    """Return theta, the scaling rule and the share of rotated dimensions.

    Where both spellings are given, ``rope_scaling`` holds, as in transformers.
    """
    name = "rope_scaling" if fields.get("rope_scaling") else "rope_parameters"
    rope = fields.get(name) or {}
    if not isinstance(rope, Mapping) or any(
        isinstance(x, Mapping) for x in rope.values()
    ):
        raise UserError(
            f"{where}: {name} = {rope!r:.80} is not supported: one rule for all"
        )
    top = family.own("rope_theta")
    theta = _positive(rope.get("rope_theta", fields.get(top, 10_000.0)), top, where)
    top = family.own("partial_rotary_factor")
    share = _positive(
        rope.get("partial_rotary_factor", fields.get(top, 1.0)), top, where
    )
    if share != 1.0 and "partial_rotary_factor" not in family.reads:
        raise UserError(
            f"{where}: partial_rotary_factor = {share!r} is not supported: 1.0"
        )
    kind: Any = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", *family.rope_types):
        raise UserError(
            f"{where}: rope scaling {kind!r} is not supported; known: "
            f"{', '.join(['default', *family.rope_types])}"
        )
    longest = fields.get("max_position_embeddings")
    rope = {"original_max_position_embeddings": longest, **rope}
    if length := fields.get("original_max_position_embeddings"):
        rope["original_max_position_embeddings"] = length
    rule: dict[str, Any] = {
        ours: _positive(rope.get(theirs), f"{name}.{theirs}", where)
        for theirs, ours in ROPE_FIELDS.get(kind, {}).items()
    }
    scaling = tuple(sorted({"type": kind, **rule}.items())) if rule else None
    return {"rope_theta": theta, "rope_scaling": scaling, "rotary_share": share}


def _write_rope(family: Family, cfg: DecoderConfig) -> dict[str, Any]:
    """Return both spellings: transformers 5 reads the new one, vLLM the old one."""
    rope = write_scaling(cfg.rope_scaling)
    if cfg.rotary_share != 1.0:
        rope["partial_rotary_factor"] = cfg.rotary_share
    return {
        family.own("rope_theta"): cfg.rope_theta,
        "rope_scaling": rope if cfg.rope_scaling else None,
        "rope_parameters": {**rope, "rope_theta": cfg.rope_theta},
    }


def write_scaling(scaling: tuple | None) -> dict[str, Any]:
    """Return the way back of `read_scaling`."""
    rule: dict[str, Any] = dict(scaling or {"type": "default"})
    names = ROPE_FIELDS.get(rule["type"], {})
    return {"rope_type": rule["type"], **{name: rule[x] for name, x in names.items()}}
