"""GradDiff and NPO: losses on the forget answers plus a retain term."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dareu_jax.config import LossMethodConfig, NpoConfig, RunConfig
from dareu_jax.corpus.batches import TokenBatch
from dareu_jax.models import Decoder, join, response_logps
from dareu_jax.models.optimiser import make_optimiser
from dareu_jax.parallel import Work
from dareu_jax.registry import METHODS
from dareu_jax.reinforcement import cross_entropy
from dareu_jax.unlearning.finetune import TrainState, apply_gradients, init_training
from dareu_jax.unlearning.method import Method, MethodInputs, Need
from dareu_jax.unlearning.work import training_work

Array = jax.Array
ForgetLoss = Callable[[Array, Array, Array], Array]


def grad_diff_loss(logps: Array, ref_logps: Array, mask: Array) -> Array:
    """-nll of the forget answers: gradient ascent (Liu et al., 2022)."""
    return -cross_entropy(logps, mask)


def npo_loss(logps: Array, ref_logps: Array, mask: Array, beta: float) -> Array:
    """-(2/beta) mean log sigmoid(-beta [log pi(y|q) - log ref(y|q)]).

    Negative preference optimisation (Zhang et al., 2024) on summed log-probs.

    Args:
      logps, ref_logps: ``[B, T]`` float32, 0 outside the mask.
      mask: ``[B, T]`` bool; beta: inverse temperature.
    """
    ratio = jnp.sum(jnp.where(mask, logps - ref_logps, 0.0), axis=1)
    return -(2.0 / beta) * jnp.mean(jax.nn.log_sigmoid(-beta * ratio))


@functools.partial(
    jax.jit,
    static_argnames=("model", "optimiser", "forget_loss", "retain_weight"),
    donate_argnames=("state",),
)
def loss_step(
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
    """One step on ``forget_loss + alpha * retain nll``; the state is used up."""
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


def needs_as_large(name: str) -> Callable[[RunConfig], dict[str, Need]]:
    """Return ``needs`` of a method: a forget and a retain batch of its size."""

    def needs(cfg: RunConfig) -> dict[str, Need]:
        need = Need(cfg.options(name).batch_size, 1, f"{name}.batch_size")
        return {"forget": need, "retain": need}

    return needs


def make_loss_method(
    cfg: LossMethodConfig, inputs: MethodInputs, forget_loss: ForgetLoss
) -> Method:
    """Returns a method that minimises ``forget_loss + alpha * retain nll``."""
    model = inputs.model
    optimiser = make_optimiser(
        cfg.learning_rate,
        cfg.steps,
        weight_decay=cfg.weight_decay,
        clip_norm=cfg.clip_norm,
        decay=False,
    )

    def work(_, *given: Any) -> Work:
        return training_work(model.cfg, list(given[-2:]), inputs.frozen, references=1)

    timed_step = inputs.watch.timed("update", loss_step, work)

    def init(params, *, key: Array) -> TrainState:
        state = init_training(model, optimiser, params, key=key)
        return state._replace(params=jax.tree.map(jnp.copy, state.params))

    def step(state: TrainState, batch, step: int, *, key: Array):
        how = (model, optimiser, forget_loss, cfg.retain_weight)
        frozen, reference = inputs.frozen, inputs.reference
        forget, retain = batch["forget"][0], batch["retain"][0]
        return timed_step(*how, state, frozen, reference, forget, retain)

    return Method(
        steps=cfg.steps,
        init=init,
        step=step,
        params_of=lambda state: join(inputs.frozen, state.params),
        headline="loss",
    )


@METHODS.register(
    "grad_diff",
    "gradient ascent on forget, descent on retain",
    needs=needs_as_large("grad_diff"),
    options=LossMethodConfig,
)
def make_grad_diff(cfg: RunConfig, inputs: MethodInputs) -> Method:
    """GradDiff: -nll_F + alpha nll_R."""
    return make_loss_method(cfg.options("grad_diff"), inputs, grad_diff_loss)


@METHODS.register(
    "npo",
    "negative preference optimisation plus a retain term",
    needs=needs_as_large("npo"),
    options=NpoConfig,
)
def make_npo(cfg: RunConfig, inputs: MethodInputs) -> Method:
    """NPO + alpha nll_R."""
    npo: NpoConfig = cfg.options("npo")

    def loss(logps, ref_logps, mask):
        return npo_loss(logps, ref_logps, mask, npo.beta)

    return make_loss_method(npo, inputs, loss)
