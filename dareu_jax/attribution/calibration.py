"""Turn scores in a kernel's own unit into DA in [0, 1], and score every prefix."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

from dareu_jax import rl
from dareu_jax.attribution.kernel import OWNERS, Kernel, axes_of
from dareu_jax.data.batches import TokenBatch

Array = jax.Array
SHARPNESS = np.geomspace(1e-2, 1e3, 201)
"""Values of beta that `fit_calibration` tries."""
LARGEST = 1e6
"""The largest logit of a calibrated score."""


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
        return float(np.mean(logsumexp(beta * z, axis=1) - beta * right))

    beta = min(SHARPNESS, key=nll)
    return Calibration(*(jnp.asarray(x, jnp.float32) for x in (mean, scale, beta)))


def probabilities(calibration: Calibration, scores: Array) -> Array:
    """Return DA ``[..., O]`` in [0, 1] of ``scores [..., O]``.

    `LARGEST` is there for columns that were constant: float32 rounds a logit of 1e14 by
    1e7, and a fused multiply and add takes exp of that.
    """
    z = (scores - calibration.mean) / calibration.scale
    logits = jnp.clip(calibration.beta * z, -LARGEST, LARGEST)
    return jax.nn.softmax(logits, axis=-1)


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
        branch_score=None,
        axes=axes,
        adds_up=False,
        is_probability=True,
    )


@dataclasses.dataclass(frozen=True)
class InSlices:
    """``prefix_score`` of a kernel without one: a token has that of its slice's end.

    Equal ones are one program.

    Attributes:
      score: of the kernel; slices, tokens: see `rl.kappa_of`.
    """

    score: Callable[..., Array]
    slices: int
    tokens: int | None

    def __call__(self, params: Any, index: Any, queries: TokenBatch) -> Array:
        """Return the scores ``[B, T, O]``, with as many calls as there are slices."""
        mask, t = queries.response_mask, queries.response.shape[1]
        kappa = rl.kappa_of(mask, self.slices, self.tokens)
        count = self.slices if self.tokens is None else -(-t // kappa)
        width = jnp.reshape(jnp.asarray(kappa, jnp.int32), (-1, 1))
        place = jnp.arange(t, dtype=jnp.int32)[None]

        def up_to(number: Array) -> Array:
            seen = mask & (place < (number + 1) * width)
            return self.score(params, index, queries._replace(response_mask=seen))

        each = jax.lax.map(up_to, jnp.arange(count, dtype=jnp.int32))  # [k, B, O]
        of = jnp.minimum(place // width, count - 1)  # the slice of every token
        of = jnp.broadcast_to(of, mask.shape)[..., None]
        return jnp.take_along_axis(jnp.moveaxis(each, 0, 1), of, axis=1)


def sliced(kernel: Kernel, slices: int, tokens: int | None) -> Kernel:
    """Return the kernel with a `prefix_score`: its own, or `InSlices`."""
    own = kernel.prefix_score
    if own is not None and not isinstance(own, InSlices):
        return kernel
    in_slices = InSlices(kernel.score, slices, tokens)
    return dataclasses.replace(kernel, prefix_score=in_slices)


def sides(owners: int, columns: Sequence[int]) -> Array:
    """Return 1 for the owners in ``columns``, and 1 for the others: ``[2, O]``."""
    inside = jnp.zeros(owners, jnp.float32).at[jnp.asarray(columns)].set(1.0)
    return jnp.stack([inside, 1.0 - inside])


def margin_weights(owners: int, columns: Sequence[int]) -> Array:
    """Return ``[O]`` float32: the mean of the owners in ``columns`` less the rest's."""
    inside, rest = sides(owners, columns)
    return inside / jnp.sum(inside) - rest / jnp.maximum(jnp.sum(rest), 1.0)


def linear_reward(
    kernel: Kernel, weights: Array, params: Any, index: Any, queries: TokenBatch
) -> Array:
    """Return sum_o r_o s(q, o) ``[B]``, the shorter way where the kernel has one."""
    if kernel.fold is not None:
        return kernel.fold(params, index, weights, queries)
    return kernel.score(params, index, queries) @ weights


def margin(kernel: Kernel, columns: Sequence[int]) -> Kernel:
    """Return the kernel as one number: the owners in ``columns`` less the rest.

    Its scores are ``[B, 2]``, the margin and 0: a softmax of them, calibrated, is the
    probability that a response is of one of those owners, and that it is not. However
    many owners there are, a kernel with `Kernel.fold` takes one ``jvp`` for it.
    """
    weights = margin_weights(kernel.owners, columns)

    def score(params: Any, index: Any, queries: TokenBatch) -> Array:
        found = linear_reward(kernel, weights, params, index, queries=queries)
        return jnp.stack([found, jnp.zeros_like(found)], axis=-1)

    return dataclasses.replace(
        kernel, score=score, prefix_score=None, branch_score=None, fold=None
    )


def spread(kernel: Kernel, columns: Sequence[int]) -> Kernel:
    """Return a calibrated `margin` ``[..., 2]`` as columns of all owners.

    The first is shared by the owners in ``columns``, the second by the others.
    """
    shares = sides(kernel.owners, columns)
    shares = shares / jnp.maximum(jnp.sum(shares, axis=1, keepdims=True), 1.0)

    def over_owners(score: Any) -> Any:
        return score and (lambda *given: score(*given) @ shares)

    return dataclasses.replace(
        kernel,
        score=over_owners(kernel.score),
        prefix_score=over_owners(kernel.prefix_score),
        branch_score=None,
    )
