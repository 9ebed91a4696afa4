"""Supervised fine-tuning: the original, the retrained oracle, the prior."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dareu_jax.config import OptimiserConfig
from dareu_jax.data.batches import TokenBatch
from dareu_jax.models import Decoder, init_decoder, join, response_logps, split
from dareu_jax.rl import cross_entropy
from dareu_jax.storage.checkpoints import Checkpoints
from dareu_jax.training.accumulation import accumulated, rows_at_once
from dareu_jax.training.loop import StepFn
from dareu_jax.training.optimiser import updated

Array = jax.Array


class TrainState(NamedTuple):
    """Trainable parameters, optimiser state and the number of updates done."""

    params: Any
    opt_state: optax.OptState
    step: Array  # [] int32


def init_training(
    model: Decoder,
    optimiser: optax.GradientTransformation,
    params: Any = None,
    *,
    key: Array,
) -> TrainState:
    """Return what is trained of ``params`` (none: a fresh decoder), with its state."""
    params = init_decoder(model, key=key) if params is None else params
    trainable, _ = split(params)
    return TrainState(trainable, optimiser.init(trainable), jnp.int32(0))


def apply_gradients(
    optimiser: optax.GradientTransformation, state: TrainState, grads: Any
) -> TrainState:
    """Return the state after one optimiser update."""
    params, opt_state = updated(optimiser, state.params, state.opt_state, grads)
    return TrainState(params, opt_state, state.step + 1)


def hide_prompt_tokens(batch: TokenBatch, share: float, *, key: Array) -> TokenBatch:
    """Hide each prompt token with probability ``share``; the last one always stays."""
    seen = jax.random.bernoulli(key, 1.0 - share, batch.prompt_mask.shape)
    seen = seen.at[:, -1].set(True)
    return batch._replace(prompt_mask=batch.prompt_mask & seen)


def response_tokens(batch: TokenBatch) -> Array:
    """Return how many tokens of a batch's responses count."""
    return jnp.count_nonzero(batch.response_mask)


@functools.partial(
    jax.jit,
    static_argnames=("model", "optimiser", "prompt_dropout", "microbatch_size"),
    donate_argnames=("state",),
)
def finetune_step(
    model: Decoder,
    optimiser: optax.GradientTransformation,
    state: TrainState,
    frozen: Any,
    batch: TokenBatch,
    *,
    prompt_dropout: float = 0.0,
    microbatch_size: int | None = None,
    key: Array,
) -> tuple[TrainState, dict[str, Array]]:
    """Do one AdamW step on -E_t log p(y_t | q, y_<t), response tokens only.

    ``frozen`` are the parameters beside the trainable ones, or ``{}``. The key decides
    which share ``prompt_dropout`` of prompt tokens is hidden from the model, and where
    adapters drop inputs out. ``microbatch_size``: see `rows_at_once`.
    """
    if prompt_dropout:
        batch = hide_prompt_tokens(batch, prompt_dropout, key=key)

    def loss_fn(trainable, rows, *, key=None):
        logps = response_logps(model, join(frozen, trainable), rows, key=key)
        loss = cross_entropy(logps, rows.response_mask)
        return loss, {"loss": loss}

    grads, metrics = accumulated(
        loss_fn,
        state.params,
        batch,
        size=rows_at_once(microbatch_size, model.cfg, batch),
        weight=response_tokens,
        key=key if frozen else None,
    )
    return apply_gradients(optimiser, state, grads), metrics


def training_steps(cfg: OptimiserConfig, steps_per_epoch: int) -> int:
    """Return the steps that make ``cfg.epochs`` passes over the records."""
    return max(1, round(cfg.epochs * steps_per_epoch))


def snapshot_steps(steps: int, count: int) -> list[int]:
    """Return the steps after which to keep a checkpoint, at even distances."""
    return sorted({round(steps * (n + 1) / count) for n in range(count)} - {0})


def snapshot_folder(folder: Path) -> Path:
    """Return where a fine-tuning in ``folder`` keeps its checkpoints for `tracin`."""
    return folder.with_name(folder.name + "_snapshots")


def keeping_snapshots(step_fn: StepFn, folder: Path, steps: list[int]) -> StepFn:
    """Return ``step_fn`` that also writes the parameters after each of ``steps``."""

    def keeping(state, step):
        state, metrics = step_fn(state, step)
        if step + 1 in steps:
            with Checkpoints(folder / f"at_{step + 1}") as saved:
                saved.save(0, state.params, {})
        return state, metrics

    return keeping
