"""Phi-3, Phi-3.5 and Phi-4: fused products, a share of each head rotated."""

from dareu_jax.models.decoder import DecoderConfig
from dareu_jax.models.hf.families.family import Family
from dareu_jax.models.hf.families.table import LAYER, Part, Weight, dense, usual_weights
from dareu_jax.registry import FAMILIES

FUSED = ("/q/", "/k/", "/v/", "/gate/", "/up/")


def weights(cfg: DecoderConfig) -> tuple[Weight, ...]:
    """Return the usual table with the tensors ``qkv_proj`` and ``gate_up_proj``."""
    table = [w for w in usual_weights(cfg) if not any(one in w.path for one in FUSED)]
    q, k, f = cfg.heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim, cfg.ffn
    parts = {
        "self_attn.qkv_proj": {"attention/q": q, "attention/k": k, "attention/v": k},
        "mlp.gate_up_proj": {"mlp/gate": f, "mlp/up": f},
    }
    for name, sizes in parts.items():
        start, step = 0, sum(sizes.values())
        for path, size in sizes.items():
            part = Part(start, size, step)
            table += dense(f"{LAYER}{name}", f"layers/{path}", part=part)
            start += size
    return tuple(table)


FAMILIES.register("phi3", "Phi-3, Phi-4")(
    Family(
        model_type="phi3",
        architecture="Phi3ForCausalLM",
        absent={"rms_norm_eps": 1e-5},
        must_be={},
        reads=("sliding_window", "partial_rotary_factor", "resid_pdrop", "embd_pdrop"),
        read=lambda fields: {"sliding_window": fields.get("sliding_window")},
        write=lambda cfg: {
            "sliding_window": cfg.sliding_window,
            "partial_rotary_factor": cfg.rotary_share,
        },
        rope_types=(),
        weights=weights,
    )
)
