"""Floating-point operations of a decoder, worked out from its shape."""

from dareu_jax.models.decoder import DecoderConfig


def weights_per_token(cfg: DecoderConfig) -> int:
    """Numbers in the matrices of all layers that each token is multiplied with."""
    heads = 2 * cfg.heads + 2 * cfg.kv_heads
    return cfg.layers * cfg.embed * (heads * cfg.head_dim + 3 * cfg.ffn)


def forward_flops(
    cfg: DecoderConfig, tokens: float, length: float, unembedded: float
) -> float:
    """FLOPs of a forward pass: ``2 weights`` a token, attention, logits.

    A causal token of a text of T looks at T/2 on average: ``4 L N H T/2`` a token.
    Kaplan et al., 2020, table 1; PaLM (Chowdhery et al., 2022), appendix B.

    Args:
      cfg: the shape; tokens: how many go through the layers.
      length: T, tokens of one text; unembedded: tokens whose logits are made.
    """
    width = cfg.heads * cfg.head_dim
    layers = 2 * weights_per_token(cfg) + 2 * cfg.layers * width * length
    return tokens * layers + unembedded * 2 * cfg.embed * cfg.vocab
