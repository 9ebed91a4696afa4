"""What methods with a loss on the forget answers and a retain term share.

One compiled step serves them all: which loss it is and every number of a row are
arrays in the state.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from pydantic import Field, ValidationInfo, field_validator

from dareu_jax.config import Section, divisor
from dareu_jax.data.batches import TokenBatch
from dareu_jax.models import Decoder, join, response_logps
from dareu_jax.rl import cross_entropy
from dareu_jax.training.accumulation import accumulated, after, rows_at_once
from dareu_jax.training.finetune import (
    TrainState,
    apply_gradients,
    init_training,
    response_tokens,
)
from dareu_jax.training.optimiser import make_optimiser
from dareu_jax.training.throughput import Work
from dareu_jax.training.work import training_work
from dareu_jax.unlearning.method import Method, MethodInputs

Array = jax.Array


class ForgetLoss(NamedTuple):
    """A loss on the forget answers.

    Attributes:
      equation: ``(logps, ref_logps, mask, **numbers) -> loss``, the first three all
        ``[B, T]``.
      numbers: names of numbers that it takes beside.
      per_row: whether it is a mean over answers; else over their tokens.
      reads_reference: whether ``ref_logps`` are needed; else they are zeros.
    """

    equation: Callable[..., Array]
    numbers: tuple[str, ...] = ()
    per_row: bool = False
    reads_reference: bool = False


LOSSES: list[ForgetLoss] = []
"""Every loss of `forget_loss`, in the order in which it was made."""


def forget_loss(
    equation: Callable[..., Array],
    *,
    numbers: tuple[str, ...] = (),
    per_row: bool = False,
    reads_reference: bool = False,
) -> ForgetLoss:
    """Return a loss that is part of the step of all methods; see `ForgetLoss`."""
    LOSSES.append(ForgetLoss(equation, numbers, per_row, reads_reference))
    return LOSSES[-1]


class LossState(NamedTuple):
    """What is trained, and what makes a row another than the next.

    Attributes:
      training: parameters and optimiser; which: place of the loss, ``[]`` int32.
      numbers: ``[]`` float32 by name: ``retain_weight`` and those of all losses.
    """

    training: TrainState
    which: Array
    numbers: dict[str, Array]


class LossMethodConfig(Section):
    """A loss-based baseline on forget and retain batches (methods 6)."""

    learning_rate: float = Field(1e-5, gt=0)  # methods 6, 7B full fine-tuning
    steps: int = Field(20, ge=1)
    batch_size: int = Field(32, ge=1)
    microbatch_size: int | None = Field(None, ge=1)  # rows at a time; none: by size
    retain_weight: float = Field(1.0, ge=0)  # alpha
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(1.0, gt=0)

    @field_validator("microbatch_size")
    @classmethod
    def _parts_of_a_batch(cls, given: int | None, info: ValidationInfo) -> int | None:
        return divisor(given, info.data.get("batch_size", 0), "batch_size")


@functools.partial(
    jax.jit,
    static_argnames=("model", "optimiser", "losses", "microbatch_size"),
    donate_argnames=("state",),
)
def loss_step(
    *,
    model: Decoder,
    optimiser: optax.GradientTransformation,
    losses: tuple[ForgetLoss, ...],
    microbatch_size: int | None = None,
    state: LossState,
    frozen: Any,
    reference: Any,
    forget: TokenBatch,
    retain: TokenBatch,
) -> tuple[LossState, dict[str, Array]]:
    """Do one step on ``forget_loss + alpha * retain nll``; the state is used up."""
    training, which, numbers = state

    def chosen(*given: Array) -> Array:
        return jax.lax.switch(which, [with_numbers(x, numbers) for x in losses], *given)

    def lost_fn(trainable, rows):
        ref_logps = reference_logps(model, losses, which, reference, rows)
        logps = response_logps(model, join(frozen, trainable), rows)
        lost = chosen(logps, ref_logps, rows.response_mask)
        return lost, {"forget_loss": lost}

    def kept_fn(trainable, rows):
        logps = response_logps(model, join(frozen, trainable), rows)
        kept = cross_entropy(logps, rows.response_mask)
        return numbers["retain_weight"] * kept, {"retain_loss": kept}

    def weight(rows: TokenBatch) -> Array:
        per_row = jnp.asarray([loss.per_row for loss in losses])[which]
        return jnp.where(per_row, len(rows.index), response_tokens(rows))

    def slope(loss_fn, rows: TokenBatch, weight):
        size = rows_at_once(microbatch_size, model.cfg, rows)
        return accumulated(loss_fn, training.params, rows, size=size, weight=weight)

    lost, first = slope(lost_fn, forget, weight)
    kept, second = after(lost, lambda: slope(kept_fn, retain, response_tokens))
    total = first["forget_loss"] + numbers["retain_weight"] * second["retain_loss"]
    grads = jax.tree.map(jnp.add, lost, kept)
    training = apply_gradients(optimiser, training, grads)
    return LossState(training, which, numbers), {"loss": total, **first, **second}


def with_numbers(
    loss: ForgetLoss, numbers: dict[str, Array]
) -> Callable[[Array, Array, Array], Array]:
    """Return the equation of a loss with its own numbers put in."""
    own = {name: numbers[name] for name in loss.numbers}
    return functools.partial(loss.equation, **own)


def reference_logps(
    model: Decoder,
    losses: tuple[ForgetLoss, ...],
    which: Array,
    reference: Any,
    rows: TokenBatch,
) -> Array:
    """Return the reference's log-probs ``[B, T]``, zeros where no loss reads them."""
    is_read = jnp.asarray([loss.reads_reference for loss in losses])[which]
    return jax.lax.cond(
        is_read,
        lambda: response_logps(model, reference, rows),
        lambda: jnp.zeros(rows.response.shape, jnp.float32),
    )


def make_loss_method(
    cfg: LossMethodConfig, inputs: MethodInputs, loss: ForgetLoss
) -> Method:
    """Return a method that minimises ``loss + alpha * retain nll``.

    Numbers of the loss are fields of ``cfg``.
    """
    model, losses = inputs.model, tuple(LOSSES)
    optimiser = make_optimiser(
        cfg.learning_rate,
        cfg.steps,
        weight_decay=cfg.weight_decay,
        clip_norm=cfg.clip_norm,
        decay=False,
    )

    def work(_, *, forget: TokenBatch, retain: TokenBatch, **rest: Any) -> Work:
        read = int(loss.reads_reference)
        batches = [forget, retain]
        return training_work(model.cfg, batches, inputs.frozen, references=read)

    timed_step = inputs.watch.timed("update", loss_step, work)

    def init(params, *, key: Array) -> LossState:
        training = init_training(model, optimiser, params, key=key)
        own = jax.tree.map(jnp.copy, training.params)
        names = {name for known in losses for name in known.numbers}
        numbers = {
            name: jnp.float32(getattr(cfg, name, 0.0))
            for name in sorted(names | {"retain_weight"})
        }
        which = jnp.int32(losses.index(loss))
        return LossState(training._replace(params=own), which, numbers)

    def step(state: LossState, batch, step: int, *, key: Array):
        return timed_step(
            model=model,
            optimiser=optimiser,
            losses=losses,
            microbatch_size=cfg.microbatch_size,
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
        params_of=lambda state: join(inputs.frozen, state.training.params),
        headline="loss",
    )
