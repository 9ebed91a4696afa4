"""Membership inference: one score per text, HIGHER = less likely a training text.

That is the direction in which open-unlearning logs them. An AUC over forget and unseen
texts means something beside the retrained model's AUC only.
"""

import functools
import zlib as compression
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dareu_jax.data import TokenBatch
from dareu_jax.errors import UserError
from dareu_jax.evaluation.metrics.rows import means_of, tokens_of
from dareu_jax.models import Decoder, response_logps
from dareu_jax.parallel import named_leaves

SHARE = 0.4
"""k of min-k in TOFU and MUSE; the attack's authors use 0.2."""
LEAST_STD = 1e-3
"""Of min-k++, where a model is all but certain; open-unlearning's 1e-6 squared."""


def loss(logps: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return -1/T sum_t log p(y_t) ``[B]``, nats per token (Yeom et al. 2018).

    Args:
      logps: ``[B, T]`` of `TokenStats`; mask: ``[B, T]`` bool.

    Raises:
      UserError: a row has no token, or a log-probability is not finite.
    """
    return means_of("loss attack", -np.asarray(logps, np.float64), mask)


def zlib(logps: np.ndarray, mask: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """Return `loss` per byte of zlib-compressed text ``[B]`` (Carlini et al., 2021)."""
    if len(texts) != len(mask):
        raise ValueError(f"zlib attack: {len(texts)} texts for {len(mask)} rows")
    sizes = [len(compression.compress(text.encode())) for text in texts]
    return loss(logps, mask) / np.asarray(sizes, np.float64)


def min_k(logps: np.ndarray, mask: np.ndarray, share: float = SHARE) -> np.ndarray:
    """Return -mean of the lowest max(1, int(share T)) values ``[B]``, Min-K % Prob.

    Raises:
      UserError: as in `loss`, or the share lies outside (0, 1].

    Source: Shi et al. (2024, arXiv 2310.16789). open-unlearning leaves a response's
    last token, the end of text, out of this and of `min_k_plus`, not out of `loss`.
    """
    if not 0.0 < share <= 1.0:
        raise UserError(f"min-k attack: share {share} lies outside (0, 1]")
    values, count = tokens_of("min-k attack", logps, mask)
    lowest = np.sort(np.where(np.asarray(mask, bool), values, np.inf), axis=1)
    size = np.maximum(1, (count * share).astype(np.int64))
    taken = np.arange(values.shape[1]) < size[:, None]
    return -np.where(taken, lowest, 0.0).sum(axis=1) / size


def min_k_plus(
    logps: np.ndarray,
    mean: np.ndarray,
    std: np.ndarray,
    mask: np.ndarray,
    share: float = SHARE,
) -> np.ndarray:
    """Return `min_k` of (log p(y_t) - mu_t) / sigma_t ``[B]``, Min-K %++.

    Source: Zhang et al. (2025, arXiv 2404.02936).
    """
    above = np.asarray(logps, np.float64) - np.asarray(mean, np.float64)
    return min_k(above / np.maximum(std, LEAST_STD), mask, share)


def reference(
    logps: np.ndarray, reference_logps: np.ndarray, mask: np.ndarray
) -> np.ndarray:
    """Return `loss` minus a reference model's loss ``[B]`` (Carlini et al. 2021)."""
    return loss(logps, mask) - loss(reference_logps, mask)


@functools.partial(jax.jit, static_argnames="model")
def gradnorm(model: Decoder, params: Any, batch: TokenBatch) -> jax.Array:
    """Return 1/W sum_w ||d(mean token loss)/dw||_2 ``[B]`` float32, W tensors.

    A layer's tensors count one by one, though all layers are stored as one stack. A
    response without a token gives NaN, and so do broken logits.

    Adapters are merged. One row's gradient, as large as ``params``, exists at a time.

    Source: Wang et al. (2024, arXiv 2402.17012).
    """

    def of_one(row: TokenBatch) -> jax.Array:
        def mean_loss(params: Any) -> jax.Array:
            logps = response_logps(model, params, jax.tree.map(lambda x: x[None], row))
            return -jnp.sum(logps) / jnp.maximum(count, 1.0)

        count = jnp.sum(row.response_mask.astype(jnp.float32))
        norms = tensor_norms(jax.grad(mean_loss)(params))
        return jnp.where(count > 0.0, jnp.mean(norms), jnp.nan)

    return jax.lax.map(of_one, batch, batch_size=1)


def tensor_norms(grads: Any) -> jax.Array:
    """Return 2-norms ``[W]`` float32 of a decoder's tensors, each layer's apart."""
    norms = []
    for name, leaf in named_leaves(grads):
        is_stack = name.split("/")[0] == "layers"
        rows = leaf.reshape(len(leaf) if is_stack else 1, -1).astype(jnp.float32)
        norms.append(jnp.sqrt(jnp.sum(jnp.square(rows), axis=1)))
    return jnp.concatenate(norms)


class Attack(NamedTuple):
    """A score per text ``[B]`` and the keyword arguments that it cannot do without."""

    score: Callable[..., Any]
    needs: tuple[str, ...]


ATTACKS = {
    "loss": Attack(loss, ("logps", "mask")),
    "zlib": Attack(zlib, ("logps", "mask", "texts")),
    "min_k": Attack(min_k, ("logps", "mask")),
    "min_k_plus_plus": Attack(min_k_plus, ("logps", "mean", "std", "mask")),
    "reference": Attack(reference, ("logps", "reference_logps", "mask")),
    "gradnorm": Attack(gradnorm, ("model", "params", "batch")),
}
