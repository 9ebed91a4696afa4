"""One decoder, its heads, and named shapes."""

from dareu_jax.models.branches import branch_states, can_branch
from dareu_jax.models.decoder import Decoder, DecoderConfig, with_all_derivatives
from dareu_jax.models.flops import forward_flops
from dareu_jax.models.lora import abstract_adapters, init_adapters, join, merge, split
from dareu_jax.models.presets import decoder_config, over_imported
from dareu_jax.models.sampler import Rollout, generate
from dareu_jax.models.scoring import (
    Trunk,
    abstract_params,
    apply_head,
    hidden_states,
    init_decoder,
    init_head,
    layer_states,
    logits_of,
    over_logits,
    parameters,
    response_hidden,
    response_logps,
    token_logps,
    trunk_of,
    whole_text,
)
