"""Floating-point operations of a decoder, worked out from its shape."""

from dareu_jax.models.decoder import DecoderConfig


def forward_flops(
    cfg: DecoderConfig, tokens: float, length: float, unembedded: float
) -> float:
    """FLOPs of ``tokens`` through the layers and the logits of ``unembedded`` tokens.

    ``2 weights`` a token and attention: a causal token of a text of T = ``length``
    looks at T/2 on average, ``4 L N H T/2``. Kaplan et al., 2020, table 1; PaLM
    (Chowdhery et al., 2022), appendix B.
    """
    width, heads = cfg.heads * cfg.head_dim, 2 * cfg.heads + 2 * cfg.kv_heads
    ffn = (3 if cfg.gated else 2) * cfg.ffn
    weights = cfg.layers * cfg.embed * (heads * cfg.head_dim + ffn)
    layers = 2 * weights + 2 * cfg.layers * width * length
    return tokens * layers + unembedded * 2 * cfg.embed * cfg.vocab
