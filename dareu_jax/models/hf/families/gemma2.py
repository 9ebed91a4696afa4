"""Gemma 2: norms around the blocks, bounded scores, a window on every other layer."""

from collections.abc import Mapping
from typing import Any

from dareu_jax.models.decoder import DecoderConfig
from dareu_jax.models.hf.families.family import (
    ACTIVATIONS,
    Family,
    positive,
    read_biases,
    read_windows,
    write_windows,
)
from dareu_jax.registry import FAMILIES

SHAPE = {"norm": "rms_plus_one", "norm_place": "both", "scaled_embedding": True}
ABSENT = {
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
MUST_BE = {
    "hidden_activation": tuple(ACTIVATIONS),
    "use_bidirectional_attention": (None, False),
}
READS = (
    "attention_bias",
    "query_pre_attn_scalar",
    "final_logit_softcapping",
    "sliding_window",
    "layer_types",
    "hidden_act",
)


def read_gemma(fields: Mapping[str, Any], every: int) -> dict[str, Any]:
    """Return what Gemma 2 and 3 set; one layer of ``every`` has no window."""
    cap, layers = "final_logit_softcapping", fields["num_hidden_layers"]
    usual = ["sliding_attention"] * (every - 1) + ["full_attention"]
    kinds = fields.get("layer_types") or [usual[n % every] for n in range(layers)]
    return {
        **SHAPE,
        **read_biases(fields),
        **read_windows(kinds, fields.get("sliding_window"), layers),
        "score_dim": positive(fields, "query_pre_attn_scalar"),
        "logit_softcap": None if fields.get(cap) is None else positive(fields, cap),
    }


def write_gemma(cfg: DecoderConfig) -> dict[str, Any]:
    """Return the fields that `read_gemma` reads."""
    return {
        "attention_bias": cfg.qkv_bias,
        "layer_types": write_windows(cfg),
        "sliding_window": cfg.sliding_window or ABSENT["sliding_window"],
        "query_pre_attn_scalar": cfg.score_dim or cfg.head_dim,
        "final_logit_softcapping": cfg.logit_softcap,
    }


def read(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the decoder's fields that Gemma 2 sets."""
    cap = "attn_logit_softcapping"
    bounded = None if fields.get(cap) is None else positive(fields, cap)
    return {**read_gemma(fields, every=2), "score_softcap": bounded}


FAMILIES.register("gemma2", "Gemma 2")(
    Family(
        model_type="gemma2",
        architecture="Gemma2ForCausalLM",
        absent={
            **ABSENT,
            "final_logit_softcapping": 30.0,
            "attn_logit_softcapping": 50.0,
        },
        must_be=MUST_BE,
        reads=(*READS, "attn_logit_softcapping"),
        read=read,
        write=lambda cfg: {
            **write_gemma(cfg),
            "attn_logit_softcapping": cfg.score_softcap,
        },
        names={"hidden_act": "hidden_activation"},
    )
)
