"""Unlearning methods under one interface."""

from dareu_jax.unlearning import grad_diff as grad_diff
from dareu_jax.unlearning import npo as npo
from dareu_jax.unlearning.dareu import make_dareu, uses_prior
from dareu_jax.unlearning.finetune import (
    TrainState,
    apply_gradients,
    finetune_step,
    init_training,
)
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
from dareu_jax.unlearning.work import training_work

__all__ = [
    "Method",
    "MethodInputs",
    "Need",
    "Prior",
    "RewardIndex",
    "TrainState",
    "apply_gradients",
    "finetune_step",
    "forget_and_retain",
    "init_training",
    "make_dareu",
    "method_config",
    "needs_of",
    "reads_of",
    "training_work",
    "uses_prior",
]
