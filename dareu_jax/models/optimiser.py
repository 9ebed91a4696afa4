"""AdamW with linear warm-up, cosine decay and global-norm clipping."""

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
    """Returns the one optimiser recipe of this library.

    Args:
      learning_rate: the peak.
      steps: updates in all.
      warmup: share of the steps that rise linearly from 0.
      weight_decay: of matrices only; norms, biases and scales are left alone.
      clip_norm: largest global gradient norm.
      decay: cosine to 0 after the warm-up; else constant.
    """
    rising = int(steps * warmup)
    if decay:
        schedule = optax.warmup_cosine_decay_schedule(
            0.0 if rising else learning_rate, learning_rate, rising, max(steps, 1)
        )
    else:
        schedule = optax.linear_schedule(
            0.0 if rising else learning_rate, learning_rate, max(rising, 1)
        )
    return _in_standard_promotion(
        optax.chain(
            optax.clip_by_global_norm(clip_norm),
            optax.adamw(schedule, weight_decay=weight_decay, mask=_matrices),
        )
    )


def _in_standard_promotion(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """Lets optax mix integer counts with floats where the caller is strict."""

    def update(grads, state, params=None):
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(grads, state, params)

    return optax.GradientTransformation(inner.init, update)


def _matrices(params):
    """True for leaves that are kernels or embeddings."""

    def is_matrix(path, leaf):
        return str(path[-1].key) in ("kernel", "embedding")

    return jax.tree_util.tree_map_with_path(is_matrix, params)
