"""What sets a few families apart, as fields of `DecoderConfig` over any shape."""

GEMMA3 = {
    "activation": "gelu_tanh",
    "norm": "rms_plus_one",
    "norm_place": "both",
    "qk_norm": True,
    "windowed": (True, True, False),
    "window_rope_theta": 100.0,
    "score_softcap": 5.0,
    "logit_softcap": 9.0,
    "scaled_embedding": True,
}
PYTHIA = {
    "activation": "gelu",
    "gated": False,
    "norm": "layer",
    "parallel_residual": True,
    "qkv_bias": True,
    "o_bias": True,
    "mlp_bias": True,
    "rotary_share": 0.25,
}
OLMO2 = {
    "norm_place": "after",
    "qk_norm": True,
    "qk_norm_whole": True,
    "rotated": (True, False, True),
}
