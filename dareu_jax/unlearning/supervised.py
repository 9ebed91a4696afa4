"""What methods with a loss on the forget answers and a retain term share."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from pydantic import Field

from dareu_jax.config import Section
from dareu_jax.data.batches import TokenBatch
from dareu_jax.models import Decoder, join, response_logps
from dareu_jax.rl import cross_entropy
from dareu_jax.training.finetune import TrainState, apply_gradients, init_training
from dareu_jax.training.optimiser import make_optimiser
from dareu_jax.training.throughput import Work
from dareu_jax.training.work import training_work
from dareu_jax.unlearning.method import Method, MethodInputs

Array = jax.Array
ForgetLoss = Callable[[Array, Array, Array], Array]
"""``(logps, ref_logps, mask)``, all ``[B, T]``, of the forget answers ``-> loss``."""


class LossMethodConfig(Section):
    """A loss-based baseline on forget and retain batches (methods 6)."""

    learning_rate: float = Field(1e-5, gt=0)  # methods 6, 7B full fine-tuning
    steps: int = Field(20, ge=1)
    batch_size: int = Field(32, ge=1)
    retain_weight: float = Field(1.0, ge=0)  # alpha
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(1.0, gt=0)


@functools.partial(
    jax.jit,
    static_argnames=("model", "optimiser", "forget_loss", "retain_weight"),
    donate_argnames=("state",),
)
def loss_step(
    *,
    model: Decoder,
    optimiser: optax.GradientTransformation,
    forget_loss: ForgetLoss,
    retain_weight: float,
    state: TrainState,
    frozen: Any,
    reference: Any,
    forget: TokenBatch,
    retain: TokenBatch,
) -> tuple[TrainState, dict[str, Array]]:
    """Do one step on ``forget_loss + alpha * retain nll``; the state is used up."""
    ref_logps = response_logps(model, reference, forget)

    def loss_fn(trainable):
        params = join(frozen, trainable)
        logps = response_logps(model, params, forget)
        lost = forget_loss(logps, ref_logps, forget.response_mask)
        kept = cross_entropy(
            response_logps(model, params, retain), retain.response_mask
        )
        total = lost + retain_weight * kept
        return total, {"loss": total, "forget_loss": lost, "retain_loss": kept}

    grads, metrics = jax.grad(loss_fn, has_aux=True)(state.params)
    return apply_gradients(optimiser, state, grads), metrics


def make_loss_method(
    cfg: LossMethodConfig, inputs: MethodInputs, forget_loss: ForgetLoss
) -> Method:
    """Return a method that minimises ``forget_loss + alpha * retain nll``."""
    model = inputs.model
    optimiser = make_optimiser(
        cfg.learning_rate,
        cfg.steps,
        weight_decay=cfg.weight_decay,
        clip_norm=cfg.clip_norm,
        decay=False,
    )

    def work(_, *, forget: TokenBatch, retain: TokenBatch, **rest: Any) -> Work:
        batches = [forget, retain]
        return training_work(model.cfg, batches, inputs.frozen, references=1)

    timed_step = inputs.watch.timed("update", loss_step, work)

    def init(params, *, key: Array) -> TrainState:
        state = init_training(model, optimiser, params, key=key)
        return state._replace(params=jax.tree.map(jnp.copy, state.params))

    def step(state: TrainState, batch, step: int, *, key: Array):
        return timed_step(
            model=model,
            optimiser=optimiser,
            forget_loss=forget_loss,
            retain_weight=cfg.retain_weight,
            state=state,
            frozen=inputs.frozen,
            reference=inputs.reference,
            forget=batch["forget"][0],
            retain=batch["retain"][0],
        )

    return Method(
        steps=cfg.steps,
        init=init,
        step=step,
        params_of=lambda state: join(inputs.frozen, state.params),
        headline="loss",
    )
