"""GradDiff: gradient ascent on the forget answers, descent on the retain answers."""

import jax

from dareu_jax.config import RunConfig
from dareu_jax.registry import METHODS
from dareu_jax.rl import cross_entropy
from dareu_jax.unlearning.method import Method, MethodInputs, forget_and_retain
from dareu_jax.unlearning.supervised import (
    LossMethodConfig,
    forget_loss,
    make_loss_method,
)

Array = jax.Array


def grad_diff_loss(logps: Array, ref_logps: Array, mask: Array) -> Array:
    """-nll of the forget answers: gradient ascent (Liu et al., 2022)."""
    return -cross_entropy(logps, mask)


LOSS = forget_loss(grad_diff_loss)


@METHODS.register(
    "grad_diff",
    "gradient ascent on forget, descent on retain",
    needs=forget_and_retain("grad_diff"),
    options=LossMethodConfig,
)
def make_grad_diff(cfg: RunConfig, inputs: MethodInputs) -> Method:
    """Return GradDiff: -nll_F + alpha nll_R."""
    return make_loss_method(cfg.options("grad_diff"), inputs, LOSS)
