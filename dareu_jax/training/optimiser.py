"""AdamW with linear warm-up, cosine decay and global-norm clipping."""

from typing import Any

import jax
import optax


def make_optimiser(
    learning_rate: float,
    steps: int,
    *,
    warmup: float = 0.0,
    weight_decay: float = 0.0,
    clip_norm: float = 1.0,
    decay: bool = True,
) -> optax.GradientTransformation:
    """Return the one optimiser recipe of this library.

    Args:
      learning_rate: the peak.
      steps: updates in all.
      warmup: share of the steps that rise linearly from 0.
      weight_decay: of matrices only; norms, biases and scales are left alone.
      clip_norm: largest global gradient norm.
      decay: cosine to 0 after the warm-up; else constant.
    """
    schedule = make_schedule(learning_rate, steps, warmup=warmup, decay=decay)
    return _in_standard_promotion(
        optax.chain(
            optax.clip_by_global_norm(clip_norm),
            optax.adamw(schedule, weight_decay=weight_decay, mask=_matrices),
        )
    )


def optimiser_of(
    cfg: Any, steps: int, *, decay: bool = True
) -> optax.GradientTransformation:
    """Return `make_optimiser` as a section of the configuration describes it."""
    return make_optimiser(
        cfg.learning_rate,
        steps,
        warmup=cfg.warmup,
        weight_decay=cfg.weight_decay,
        clip_norm=cfg.clip_norm,
        decay=decay,
    )


def updated(
    optimiser: optax.GradientTransformation, params: Any, opt_state: Any, grads: Any
) -> tuple[Any, optax.OptState]:
    """Return parameters and optimiser state after one update."""
    updates, opt_state = optimiser.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def make_schedule(
    learning_rate: float, steps: int, *, warmup: float = 0.0, decay: bool = True
) -> optax.Schedule:
    """Return the learning rate by step; arguments as for `make_optimiser`."""
    rising = int(steps * warmup)
    low = 0.0 if rising else learning_rate
    if decay:
        return optax.warmup_cosine_decay_schedule(
            low, learning_rate, rising, max(steps, 1)
        )
    return optax.linear_schedule(low, learning_rate, max(rising, 1))


def _in_standard_promotion(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """Let optax mix integer counts with floats where the caller is strict."""

    def update(grads, state, params=None):
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(grads, state, params)

    return optax.GradientTransformation(inner.init, update)


def _matrices(params):
    """Return True for leaves that are kernels or embeddings."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: str(path[-1].key) in ("kernel", "embedding"), params
    )
