"""GPT-NeoX and Pythia: layer norms, biases, attention beside the feed-forward layer."""

from collections.abc import Mapping
from typing import Any

from dareu_jax.errors import UserError
from dareu_jax.models.decoder import DecoderConfig
from dareu_jax.models.hf.families.family import ACTIVATIONS, Family, read_biases
from dareu_jax.models.hf.families.table import Part, Weight, dense
from dareu_jax.registry import FAMILIES

LAYER = "gpt_neox.layers.{layer}."
NORMS = {
    f"{LAYER}input_layernorm": "layers/attention_norm",
    f"{LAYER}post_attention_layernorm": "layers/mlp_norm",
    "gpt_neox.final_layer_norm": "final_norm",
}


def weights(cfg: DecoderConfig) -> tuple[Weight, ...]:
    """Return the table; queries, keys and values lie head by head in one tensor."""
    table = [Weight("gpt_neox.embed_in.weight", "embed/embedding")]
    for name, path in NORMS.items():
        table.append(Weight(f"{name}.weight", f"{path}/scale"))
        table.append(Weight(f"{name}.bias", f"{path}/bias"))
    h, mixed = cfg.head_dim, f"{LAYER}attention.query_key_value"
    for place, one in enumerate("qkv"):
        part = Part(start=place * h, size=h, step=3 * h)
        table += dense(mixed, f"layers/attention/{one}", cfg.qkv_bias, part)
    table += dense(f"{LAYER}attention.dense", "layers/attention/o", cfg.o_bias)
    table += dense(f"{LAYER}mlp.dense_h_to_4h", "layers/mlp/up", bias=True)
    table += dense(f"{LAYER}mlp.dense_4h_to_h", "layers/mlp/down", bias=True)
    return (*table, *([] if cfg.tied else dense("embed_out", "lm_head")))


def read(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the decoder's fields that GPT-NeoX sets."""
    heads = fields["num_attention_heads"]
    fixed = {"head_dim": fields["hidden_size"] // heads, "num_key_value_heads": heads}
    for name, value in fixed.items():
        if fields.get(name) not in (None, value):
            raise UserError(f"{name} = {fields[name]!r} is not supported: {value}")
    return {
        "norm": "layer",
        "gated": False,
        "mlp_bias": True,
        "parallel_residual": bool(fields["use_parallel_residual"]),
        **read_biases(fields),
    }


FAMILIES.register("gpt_neox", "GPT-NeoX, Pythia")(
    Family(
        model_type="gpt_neox",
        architecture="GPTNeoXForCausalLM",
        absent={
            "layer_norm_eps": 1e-5,
            "hidden_act": "gelu",
            "attention_bias": True,
            "use_parallel_residual": True,
            "rotary_emb_base": 10_000.0,
            "rotary_pct": 0.25,
        },
        must_be={"hidden_act": tuple(ACTIVATIONS)},
        reads=(
            "attention_bias",
            "use_parallel_residual",
            "partial_rotary_factor",
            "hidden_dropout",
            "classifier_dropout",
            "is_decoder",
        ),
        read=read,
        write=lambda cfg: {
            "attention_bias": cfg.qkv_bias,
            "use_parallel_residual": cfg.parallel_residual,
            "rotary_pct": cfg.rotary_share,
        },
        names={
            "rms_norm_eps": "layer_norm_eps",
            "rope_theta": "rotary_emb_base",
            "partial_rotary_factor": "rotary_pct",
        },
        weights=weights,
    )
)
