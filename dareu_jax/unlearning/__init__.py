"""Unlearning methods under one interface."""

from dareu_jax.unlearning import loss_methods as loss_methods
from dareu_jax.unlearning.dareu import make_dareu, uses_prior
from dareu_jax.unlearning.finetune import TrainState, finetune_step, init_training
from dareu_jax.unlearning.method import (
    Method,
    MethodInputs,
    Need,
    Prior,
    RewardIndex,
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
    "finetune_step",
    "init_training",
    "make_dareu",
    "method_config",
    "needs_of",
    "reads_of",
    "training_work",
    "uses_prior",
]
