"""Method `rmu`: representation misdirection for unlearning (Li et al., 2024)."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from pydantic import Field

from dareu_jax.config import RunConfig, Section
from dareu_jax.errors import UserError
from dareu_jax.models import join, layer_states, whole_text
from dareu_jax.registry import METHODS
from dareu_jax.rl import masked_mean
from dareu_jax.training.finetune import TrainState, apply_gradients, init_training
from dareu_jax.training.optimiser import make_optimiser
from dareu_jax.unlearning import Method, MethodInputs, forget_and_retain


class RmuConfig(Section):
    """The section `rmu` of a configuration."""

    learning_rate: float = Field(1e-5, gt=0)
    steps: int = Field(20, ge=1)
    batch_size: int = Field(32, ge=1)
    layer: int | None = Field(None, ge=1)  # l, from 1 on; none: the middle one
    steering: float = Field(2.0, gt=0)  # c
    alpha: float = Field(1.0, ge=0)


class RmuState(NamedTuple):
    training: TrainState
    direction: jax.Array  # u [D] float32, of length 1


def mean_square(gap, mask):
    """Mean of gap ** 2 over the true tokens and all of D; gap [B, T, D]."""
    return masked_mean(jnp.mean(gap**2, axis=-1), mask)


@functools.partial(jax.jit, static_argnames=("model", "optimiser", "hp", "layer"))
def rmu_step(*, model, optimiser, hp, layer, state, frozen, reference, forget, retain):
    """One step on mean |h(x_F) - c u|^2 + alpha mean |h(x_R) - h_ref(x_R)|^2."""

    def states(params, batch):  # h_l of the response tokens, [B, T, D]
        h = layer_states(model, params, *whole_text(batch), layer)
        return h[:, batch.prompt.shape[1] :].astype(jnp.float32)

    kept = states(reference, retain)

    def loss_fn(trainable):
        params = join(frozen, trainable)
        away = states(params, forget) - hp.steering * state.direction
        lost = mean_square(away, forget.response_mask)
        held = mean_square(states(params, retain) - kept, retain.response_mask)
        loss = lost + hp.alpha * held
        return loss, {"loss": loss, "forget_loss": lost, "retain_loss": held}

    grads, metrics = jax.grad(loss_fn, has_aux=True)(state.training.params)
    training = apply_gradients(optimiser, state.training, grads)
    return RmuState(training, state.direction), metrics


@METHODS.register(
    "rmu",
    "hidden states of forget answers pushed to a random direction",
    options=RmuConfig,
    needs=forget_and_retain("rmu"),
)
def make_rmu(cfg: RunConfig, inputs: MethodInputs) -> Method:
    hp: RmuConfig = cfg.options("rmu")
    model, layers = inputs.model, inputs.model.cfg.layers
    layer = hp.layer or (layers + 1) // 2
    if layer > layers:
        raise UserError(f"rmu.layer = {layer}: the model has {layers} layers")
    optimiser = make_optimiser(hp.learning_rate, hp.steps, decay=False)

    def init(params, *, key) -> RmuState:
        u = jax.random.uniform(key, (model.cfg.embed,))
        training = init_training(model, optimiser, params, key=key)
        return RmuState(training, u / jnp.linalg.norm(u))

    def step(state: RmuState, batch, step: int, *, key):
        return rmu_step(
            model=model,
            optimiser=optimiser,
            hp=hp,
            layer=layer,
            state=state,
            frozen=inputs.frozen,
            reference=inputs.reference,
            forget=batch["forget"][0],
            retain=batch["retain"][0],
        )

    def params_of(state: RmuState) -> Any:
        return join(inputs.frozen, state.training.params)

    return Method(hp.steps, init, step, params_of, headline="loss")
