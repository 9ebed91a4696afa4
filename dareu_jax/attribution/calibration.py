"""Turn scores in a kernel's own unit into DA in [0, 1], and score every prefix."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dareu_jax.attribution.kernel import OWNERS, Kernel, axes_of
from dareu_jax.corpus.batches import TokenBatch

Array = jax.Array
SHARPNESS = np.geomspace(1e-2, 1e3, 201)
"""Values of beta that `fit_calibration` tries."""


class Calibration(NamedTuple):
    """DA = softmax_o(beta (s_o - mean_o) / scale_o); ``[O]``, ``[O]`` and ``[]``."""

    mean: Array
    scale: Array
    beta: Array


def fit_calibration(scores: np.ndarray, owner: np.ndarray) -> Calibration:
    """Return mean and deviation of every column, and the likeliest beta for labels.

    Args:
      scores: ``[N, O]`` of reference responses; owner: ``[N]`` their columns.
    """
    scores = np.asarray(scores, np.float64)
    mean, scale = scores.mean(axis=0), np.maximum(scores.std(axis=0), 1e-12)
    z = (scores - mean) / scale
    right = z[np.arange(len(owner)), owner]

    def nll(beta: float) -> float:
        top = beta * z.max(axis=1, keepdims=True)
        total = np.exp(beta * z - top).sum(axis=1)
        return float(np.mean(np.log(total) + top[:, 0] - beta * right))

    beta = min(SHARPNESS, key=nll)
    return Calibration(*(jnp.asarray(x, jnp.float32) for x in (mean, scale, beta)))


def probabilities(calibration: Calibration, scores: Array) -> Array:
    """Return DA ``[..., O]`` in [0, 1] of ``scores [..., O]``."""
    z = (scores - calibration.mean) / calibration.scale
    return jax.nn.softmax(calibration.beta * z, axis=-1)


def calibrated(kernel: Kernel) -> Kernel:
    """Return the kernel with scores in [0, 1], whose index has a `Calibration` too."""

    def score(params: Any, index: Any, queries: TokenBatch) -> Array:
        return probabilities(index[1], kernel.score(params, index[0], queries))

    def prefix_score(params: Any, index: Any, queries: TokenBatch) -> Array:
        assert kernel.prefix_score is not None
        return probabilities(index[1], kernel.prefix_score(params, index[0], queries))

    def axes(index: Any) -> Any:
        own = Calibration(mean=(OWNERS,), scale=(OWNERS,), beta=())  # type: ignore
        return axes_of(kernel, index[0]), own

    return dataclasses.replace(
        kernel,
        score=score,
        prefix_score=prefix_score if kernel.prefix_score else None,
        axes=axes,
        adds_up=False,
        is_probability=True,
    )


def sliced(kernel: Kernel, width: int) -> Kernel:
    """Return the kernel with `prefix_score`: a token gets the score at its slice's end.

    Args:
      kernel: one that scores whole responses; width: tokens of a slice.
    """
    if kernel.prefix_score is not None:
        return kernel

    def prefix_score(params: Any, index: Any, queries: TokenBatch) -> Array:
        t = queries.response.shape[1]
        place = jnp.arange(t, dtype=jnp.int32)

        def up_to(end: Array) -> Array:
            seen = queries.response_mask & (place <= end)[None]
            return kernel.score(params, index, queries._replace(response_mask=seen))

        ends = jnp.arange(width - 1, t + width - 1, width, dtype=jnp.int32)
        each = jax.lax.map(up_to, ends)  # [slices, B, O]
        return jnp.repeat(jnp.moveaxis(each, 0, 1), width, axis=1)[:, :t]

    return dataclasses.replace(kernel, prefix_score=prefix_score)
