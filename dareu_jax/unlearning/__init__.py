"""Unlearning methods under one interface."""

from dareu_jax.unlearning import grad_diff as grad_diff
from dareu_jax.unlearning import npo as npo
from dareu_jax.unlearning import retrain_lora as retrain_lora
from dareu_jax.unlearning.dareu import judges_logits, make_dareu, uses_prior
from dareu_jax.unlearning.method import (
    Method,
    MethodInputs,
    Need,
    Prior,
    RewardIndex,
    forget_and_retain,
    needs_of,
    reads_of,
)
from dareu_jax.unlearning.presets import method_config
