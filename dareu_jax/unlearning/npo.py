"""NPO: negative preference optimisation plus a retain term."""

import jax
import jax.numpy as jnp
from pydantic import Field

from dareu_jax.config import RunConfig
from dareu_jax.registry import METHODS
from dareu_jax.unlearning.method import Method, MethodInputs, forget_and_retain
from dareu_jax.unlearning.supervised import (
    LossMethodConfig,
    forget_loss,
    make_loss_method,
)

Array = jax.Array


class NpoConfig(LossMethodConfig):
    """Negative preference optimisation (methods 6)."""

    beta: float = Field(0.1, gt=0)


def npo_loss(logps: Array, ref_logps: Array, mask: Array, beta: float) -> Array:
    """-(2/beta) mean log sigmoid(-beta [log pi(y|q) - log ref(y|q)]).

    Negative preference optimisation (Zhang et al., 2024) on sums of log-probs
    ``[B, T]``.
    """
    ratio = jnp.sum(jnp.where(mask, logps - ref_logps, 0.0), axis=1)
    return -(2.0 / beta) * jnp.mean(jax.nn.log_sigmoid(-beta * ratio))


LOSS = forget_loss(npo_loss, numbers=("beta",), per_row=True, reads_reference=True)


@METHODS.register(
    "npo",
    "negative preference optimisation plus a retain term",
    needs=forget_and_retain("npo"),
    options=NpoConfig,
)
def make_npo(cfg: RunConfig, inputs: MethodInputs) -> Method:
    """Return NPO: its loss on the forget answers + alpha nll_R."""
    return make_loss_method(cfg.options("npo"), inputs, LOSS)
