"""AdamW with linear warm-up, cosine decay and global-norm clipping, in one pass.

The numbers of a recipe travel in its state, so that trainings which differ in them
alone share one compiled step. Parameters of lower precision than float32 are trained on
float32 copies of them: with a learning rate of 1e-5 most entries of bfloat16 would
otherwise round back to where they were.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Array = jax.Array
B1, B2, EPS = 0.9, 0.999, 1e-8
"""Decay of the mean and of the square of gradients, and what is added to its root."""


class Recipe(NamedTuple):
    """The numbers of an optimiser, ``[]`` float32.

    Attributes:
      peak: the highest learning rate.
      rising, falling: updates of the warm-up and of the decay; 0: there is none.
      weight_decay: of matrices; clip_norm: the largest gradient norm.
    """

    peak: Array
    rising: Array
    falling: Array
    weight_decay: Array
    clip_norm: Array


class AdamwState(NamedTuple):
    """State of AdamW, float32 throughout.

    Attributes:
      recipe: its numbers; done: updates so far, ``[]`` int32.
      mu, nu: running means of gradients and of their squares, trees as parameters are.
    """

    recipe: Recipe
    done: Array
    mu: Any
    nu: Any


class WithMasters(NamedTuple):
    """State of an optimiser of which some parameters are below float32.

    Attributes:
      masters: float32 copies of these, None in the place of all others.
      inner: state of the optimiser of float32 parameters.
    """

    masters: Any
    inner: AdamwState


class Optimiser(optax.GradientTransformation):
    """A transformation of optax that equals any with the same ``update``.

    As a static argument of a jitted step all its recipes share one program. Its
    ``init`` holds the recipe: call it outside of such a step.
    """

    def __eq__(self, other: object) -> bool:
        """Return whether both update alike, given the same state."""
        return isinstance(other, Optimiser) and self.update is other.update

    def __hash__(self) -> int:
        """Return a number that is the same for all that update alike."""
        return hash(self.update)


@functools.cache
def make_optimiser(
    learning_rate: float,
    steps: int,
    *,
    warmup: float = 0.0,
    weight_decay: float = 0.0,
    clip_norm: float = 1.0,
    decay: bool = True,
) -> Optimiser:
    """Return the one optimiser recipe of this library, the same object for the same.

    Args:
      learning_rate: the peak.
      steps: updates in all.
      warmup: share of the steps that rise linearly from 0.
      weight_decay: of matrices only; norms, biases and scales are left alone.
      clip_norm: largest global gradient norm.
      decay: cosine to 0 after the warm-up; else constant.
    """
    rising, falling = phases_of(steps, warmup, decay)
    numbers = (learning_rate, rising, falling, weight_decay, clip_norm)

    def init(params: Any) -> AdamwState | WithMasters:
        masters = jax.tree.map(_master_of, params)
        wide = _in_float32(params, masters)
        state = AdamwState(
            recipe=Recipe(*map(jnp.float32, numbers)),
            done=jnp.int32(0),
            mu=jax.tree.map(jnp.zeros_like, wide),
            nu=jax.tree.map(jnp.zeros_like, wide),
        )
        return WithMasters(masters, state) if jax.tree.leaves(masters) else state

    return Optimiser(init, update)


def update(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
    """Return the steps of float32 parameters, and the state after one update.

    Where there are masters, a step leads from a parameter to its rounded master.
    """
    if not isinstance(state, WithMasters):
        return _all_steps(grads, state, params)
    wide = _in_float32(params, state.masters)
    steps, after = _all_steps(grads, state.inner, wide)
    new = optax.apply_updates(wide, steps)
    masters = jax.tree.map(_if_kept, params, state.masters, new)
    updates = jax.tree.map(_way, params, state.masters, steps, new)
    return updates, WithMasters(masters, after)


def _all_steps(grads: Any, state: AdamwState, params: Any) -> tuple[Any, AdamwState]:
    """Return `adamw` of every float32 parameter, with the gradient's norm clipped."""
    recipe, done = state.recipe, state.done + 1
    grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
    clip = jnp.minimum(1.0, recipe.clip_norm / optax.tree.norm(grads))
    rate = learning_rate_at(recipe, state.done)

    def one(path: Any, *leaf: Array) -> tuple[Array, Array, Array]:
        is_matrix = str(path[-1].key) in ("kernel", "embedding")
        decay = recipe.weight_decay if is_matrix else jnp.float32(0.0)
        return adamw(*leaf, clip=clip, rate=rate, decay=decay, done=done)

    found = jax.tree_util.tree_map_with_path(one, params, grads, state.mu, state.nu)
    outer, inner = jax.tree.structure(params), jax.tree.structure((0, 0, 0))
    steps, mu, nu = jax.tree.transpose(outer, inner, found)
    return steps, AdamwState(recipe, done, mu, nu)


def adamw(
    param: Array,
    grad: Array,
    mu: Array,
    nu: Array,
    *,
    clip: Array,
    rate: Array,
    decay: Array,
    done: Array,
) -> tuple[Array, Array, Array]:
    """Return ``-eta (m^ / (sqrt(v^) + eps) + lambda w)``, m and v of ``clip g``.

    AdamW (Loshchilov & Hutter, 2019) with m^ = m / (1 - b1^t), v^ = v / (1 - b2^t).
    What does not depend on the entry is worked out first: an entry costs one root and
    one quotient, and each array is read and written once.
    """
    t = done.astype(jnp.float32)
    root = jnp.sqrt(1.0 - B2**t)
    scale, eps = rate * root / (1.0 - B1**t), EPS * root
    grad = clip * grad
    mu = B1 * mu + (1.0 - B1) * grad
    nu = B2 * nu + (1.0 - B2) * grad**2
    return -scale * mu / (jnp.sqrt(nu) + eps) - rate * decay * param, mu, nu


def phases_of(steps: int, warmup: float, decay: bool) -> tuple[int, int]:
    """Return the updates of the warm-up and of the decay; see `make_optimiser`."""
    rising = int(steps * warmup)
    return rising, max(steps, 1) - rising if decay else 0


def learning_rate_at(recipe: Recipe, done: Array) -> Array:
    """Return ``eta min(n / rising, 1) (1 + cos(pi (n - rising) / falling)) / 2``.

    ``done`` is n, the updates so far. Cosine decay (Loshchilov & Hutter, 2017) begins
    where the warm-up ends.
    """
    n, one = done.astype(jnp.float32), jnp.float32(1.0)
    warm = jnp.where(recipe.rising > 0.0, n / jnp.maximum(recipe.rising, 1.0), one)
    fallen = (n - recipe.rising) / jnp.maximum(recipe.falling, 1.0)
    fallen = jnp.where(recipe.falling > 0.0, jnp.clip(fallen, 0.0, 1.0), 0.0)
    return recipe.peak * jnp.minimum(warm, 1.0) * 0.5 * (1.0 + jnp.cos(jnp.pi * fallen))


def make_schedule(
    learning_rate: float, steps: int, *, warmup: float = 0.0, decay: bool = True
) -> optax.Schedule:
    """Return the learning rate by step; arguments as for `make_optimiser`."""
    numbers = (learning_rate, *phases_of(steps, warmup, decay), 0.0, 1.0)
    recipe = Recipe(*map(jnp.float32, numbers))
    return jax.jit(lambda step: learning_rate_at(recipe, jnp.asarray(step, jnp.int32)))


def optimiser_of(cfg: Any, steps: int, *, decay: bool = True) -> Optimiser:
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


def moments_of(opt_state: AdamwState | WithMasters) -> AdamwState:
    """Return an optimiser's state without the masters of the parameters."""
    return opt_state.inner if isinstance(opt_state, WithMasters) else opt_state


def with_moments(
    opt_state: AdamwState | WithMasters, moments: AdamwState
) -> AdamwState | WithMasters:
    """Return the state that has other moments and the same masters.

    Two optimisers of the same parameters must share these: each rounds them to its own.
    """
    if isinstance(opt_state, WithMasters):
        return opt_state._replace(inner=moments)
    return moments


def _master_of(leaf: Array) -> Array | None:
    """Return a float32 copy of a parameter that has less precision."""
    is_low = jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize < 4
    return leaf.astype(jnp.float32) if is_low else None


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
