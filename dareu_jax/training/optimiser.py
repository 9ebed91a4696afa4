"""AdamW with linear warm-up, cosine decay and global-norm clipping.

Parameters of lower precision than float32 are trained on float32 copies of them: with
a learning rate of 1e-5 most entries of bfloat16 would otherwise round back to where
they were.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Array = jax.Array


class WithMasters(NamedTuple):
    """State of an optimiser of which some parameters are below float32.

    Attributes:
      masters: float32 copies of these, None in the place of all others.
      inner: state of the optimiser of float32 parameters.
    """

    masters: Any
    inner: optax.OptState


@functools.cache
def make_optimiser(
    learning_rate: float,
    steps: int,
    *,
    warmup: float = 0.0,
    weight_decay: float = 0.0,
    clip_norm: float = 1.0,
    decay: bool = True,
) -> optax.GradientTransformation:
    """Return the one optimiser recipe of this library, the same object for the same.

    Args:
      learning_rate: the peak.
      steps: updates in all.
      warmup: share of the steps that rise linearly from 0.
      weight_decay: of matrices only; norms, biases and scales are left alone.
      clip_norm: largest global gradient norm.
      decay: cosine to 0 after the warm-up; else constant.
    """
    schedule = make_schedule(learning_rate, steps, warmup=warmup, decay=decay)
    adamw = optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(schedule, weight_decay=weight_decay, mask=_matrices),
    )
    return with_masters(_in_standard_promotion(adamw))


def with_masters(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return the optimiser in float32 throughout, whatever the parameters are.

    Where all are float32 it is ``inner``. Else its state is `WithMasters`, and an
    update leads from a parameter to its rounded master.
    """

    def init(params: Any) -> Any:
        masters = jax.tree.map(_master_of, params)
        if not jax.tree.leaves(masters):
            return inner.init(params)
        return WithMasters(masters, inner.init(_in_float32(params, masters)))

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if not isinstance(state, WithMasters):
            return inner.update(grads, state, params)
        wide = _in_float32(params, state.masters)
        grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
        steps, after = inner.update(grads, state.inner, wide)
        new = optax.apply_updates(wide, steps)
        masters = jax.tree.map(_if_kept, params, state.masters, new)
        updates = jax.tree.map(_way, params, state.masters, steps, new)
        return updates, WithMasters(masters, after)

    return optax.GradientTransformation(init, update)


def _is_low(leaf: Array) -> bool:
    """Return whether a parameter has less than float32's precision."""
    return jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize < 4


def _master_of(leaf: Array) -> Array | None:
    return leaf.astype(jnp.float32) if _is_low(leaf) else None


def _if_kept(leaf: Array, master: Array | None, new: Array) -> Array | None:
    return None if master is None else new


def _way(leaf: Array, master: Array | None, step: Array, new: Array) -> Array:
    """Return the step that leads from a parameter to its rounded master."""
    if master is None:
        return step
    return new.astype(leaf.dtype).astype(jnp.float32) - leaf.astype(jnp.float32)


def _in_float32(params: Any, masters: Any) -> Any:
    """Return masters, and the parameters that have none."""
    return jax.tree.map(lambda p, m: p if m is None else m, params, masters)


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
    """Return parameters and optimiser state after one update.

    A parameter that has a master is that one, rounded.
    """
    updates, opt_state = optimiser.update(grads, opt_state, params)
    if not isinstance(opt_state, WithMasters):
        return optax.apply_updates(params, updates), opt_state

    def after(leaf: Array, master: Array | None, update: Array) -> Array:
        return leaf + update if master is None else master.astype(leaf.dtype)

    return jax.tree.map(after, params, opt_state.masters, updates), opt_state


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
