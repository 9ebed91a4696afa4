"""Which tensor of a folder holds which parameter."""

import dataclasses
from collections.abc import Iterator

from dareu_jax.models.decoder import DecoderConfig


@dataclasses.dataclass(frozen=True)
class Part:
    """The rows of a fused tensor that one parameter has: ``size`` of each ``step``.

    They begin at ``start``. Queries of heads of 8 that are stored head by head with
    keys and values, for example, are the first 8 rows of each 24.
    """

    start: int
    size: int
    step: int

    def slices(self, rows: slice) -> Iterator[slice]:
        """Yield where ``rows`` of the parameter are in the tensor, in order."""
        for block in range(rows.start // self.size, -(-rows.stop // self.size)):
            first = block * self.size
            shift = block * self.step + self.start - first
            last = min(rows.stop, first + self.size)
            yield slice(max(rows.start, first) + shift, last + shift)


@dataclasses.dataclass(frozen=True)
class Weight:
    """A Hugging Face tensor and the parameter that holds it."""

    name: str  # with {layer} in it: one tensor per layer, stacked here
    path: str  # of the parameter, joined by /
    transpose: bool = False  # it is stored [out, in]; ours are [in, out]
    part: Part | None = None  # the rows of this parameter, where it holds several

    @property
    def per_layer(self) -> bool:
        """Whether the parameter stacks one tensor of each layer."""
        return "{layer}" in self.name


LAYER = "model.layers.{layer}."
NORMS = {
    "before": {"input": "attention_norm", "post_attention": "mlp_norm"},
    "after": {"post_attention": "attention_norm_after"},
    "both": {
        "input": "attention_norm",
        "post_attention": "attention_norm_after",
        "pre_feedforward": "mlp_norm",
    },
}
"""Norms of a layer by the place of norms: theirs -> ours."""
NORMS["after"]["post_feedforward"] = NORMS["both"]["post_feedforward"] = (
    "mlp_norm_after"
)


def usual_weights(cfg: DecoderConfig) -> tuple[Weight, ...]:
    """Return the table of all families that name their tensors as Llama does."""
    table = [
        Weight("model.embed_tokens.weight", "embed/embedding"),
        Weight("model.norm.weight", "final_norm/scale"),
    ]
    for theirs, ours in NORMS[cfg.norm_place].items():
        name = f"{LAYER}{theirs}_layernorm.weight"
        table.append(Weight(name, f"layers/{ours}/scale"))
    for one in "qkvo":
        bias = cfg.o_bias if one == "o" else cfg.qkv_bias
        table += dense(f"{LAYER}self_attn.{one}_proj", f"layers/attention/{one}", bias)
    for one in ("gate", "up", "down"):
        table += dense(f"{LAYER}mlp.{one}_proj", f"layers/mlp/{one}", cfg.mlp_bias)
    for one in "qk" if cfg.qk_norm else "":
        name = f"{LAYER}self_attn.{one}_norm.weight"
        table.append(Weight(name, f"layers/attention/{one}_norm/scale"))
    if not cfg.tied:
        table.append(Weight("lm_head.weight", "lm_head/kernel", transpose=True))
    return tuple(table)


def dense(
    name: str, path: str, bias: bool = False, part: Part | None = None
) -> list[Weight]:
    """Return the weights of a dense layer."""
    kernel = Weight(f"{name}.weight", f"{path}/kernel", transpose=True, part=part)
    return [kernel, Weight(f"{name}.bias", f"{path}/bias", part=part)][: 1 + bias]
