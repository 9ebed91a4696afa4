"""Gemma 3, text: Gemma 2 with normalised queries and keys, two rotary bases."""

from collections.abc import Mapping
from typing import Any

from dareu_jax.errors import UserError
from dareu_jax.models.decoder import DecoderConfig
from dareu_jax.models.hf.families.family import Family, positive, write_scaling
from dareu_jax.models.hf.families.gemma2 import (
    ABSENT,
    MUST_BE,
    READS,
    read_gemma,
    write_gemma,
)
from dareu_jax.registry import FAMILIES

KINDS = ("full_attention", "sliding_attention")
LOCAL = "rope_local_base_freq"


def respell(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with the rule of the layers without a window as the one rule.

    The base of those with a window becomes ``rope_local_base_freq``.
    """
    rope = fields.get("rope_parameters") or {}
    if not isinstance(rope, Mapping) or set(rope) - set(KINDS):
        raise UserError(
            f"rope_parameters = {rope!r:.80} must name {' and '.join(KINDS)}"
        )
    full, windowed = (rope.get(kind) or {} for kind in KINDS)
    scaling = fields.get("rope_scaling") or {}
    if "type" in scaling and "rope_type" not in scaling:
        raise UserError(
            "rope_scaling has no rope_type, so transformers does not read it"
        )
    if (kind := windowed.get("rope_type", "default")) != "default":
        raise UserError(
            f"rope scaling {kind!r} of layers with a window is not supported; known: "
            "default"
        )
    return {
        **fields,
        "rope_parameters": {**full, **scaling},
        "rope_scaling": None,
        LOCAL: windowed.get("rope_theta", fields.get(LOCAL)),
    }


def read(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the decoder's fields that Gemma 3 sets."""
    every = fields.get("sliding_window_pattern")
    if type(every) is not int or every < 1:
        raise UserError(f"sliding_window_pattern = {every!r} must be 1 or more")
    own = read_gemma(fields, every)
    local = positive(fields, LOCAL) if "sliding_window" in own else None
    return {**own, "qk_norm": True, "window_rope_theta": local}


def write(cfg: DecoderConfig) -> dict[str, Any]:
    """Return the fields that `read` reads."""
    local = cfg.window_rope_theta or 10_000.0
    full = {**write_scaling(cfg.rope_scaling), "rope_theta": cfg.rope_theta}
    windowed = {"rope_type": "default", "rope_theta": local}
    return {
        **write_gemma(cfg),
        LOCAL: local,
        "rope_parameters": dict(zip(KINDS, (full, windowed), strict=True)),
    }


FAMILIES.register("gemma3_text", "Gemma 3, text")(
    Family(
        model_type="gemma3_text",
        architecture="Gemma3ForCausalLM",
        absent={
            **ABSENT,
            "rope_theta": 1e6,
            LOCAL: 10_000.0,
            "sliding_window_pattern": 6,
        },
        must_be={**MUST_BE, "attn_logit_softcapping": (None,)},
        reads=(*READS, LOCAL, "sliding_window_pattern", "_sliding_window_pattern"),
        read=read,
        write=write,
        names={"hidden_act": "hidden_activation"},
        respell=respell,
    )
)
