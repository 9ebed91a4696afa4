"""Attention by the fused kernels of accelerators, which keep no scores in memory.

They serve tokens that look at each other alone: no cache, no prefix tree. They have a
gradient, but no forward-mode derivative: `decoder.with_all_derivatives`.
"""

import math
import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from dareu_jax.models.attention import Scores, block_size, in_blocks, in_window, whole
from dareu_jax.parallel import BATCH_AXES

Array = jax.Array
SHORT = 128
"""Tokens of a text below which ``auto`` takes no kernel; not measured here: as in
MaxText, whose ``autoselected`` attention does the same."""
TILE = 128
"""Splash takes texts of a multiple of it."""


class Rule(NamedTuple):
    """How the layers of a decoder attend.

    Attributes:
      name: a choice of ``model.attention``; head_dim: H; dtype: of q, k and v.
      window: tokens that each looks back at, in every layer; None: at all.
      windows_differ: some layers have a window of their own, which no kernel knows.
    """

    name: str
    scores: Scores
    head_dim: int
    dtype: str
    window: int | None = None
    windows_differ: bool = False


class Fused(NamedTuple):
    """A fused kernel.

    Attributes:
      attend: from q, k, v, the mask ``[B, T]`` and the rule to ``[B, T, N, H]``.
      lacks: what a decoder asks that it cannot do, in words, or None.
      is_here: whether this machine has it.
    """

    attend: Callable[[Array, Array, Array, Array, Rule], Array]
    lacks: Callable[[Rule], str | None]
    is_here: Callable[[], bool]


def attention(
    q: Array, k: Array, v: Array, seen: Array, rule: Rule, first: Array | int
) -> Array:
    """softmax(q k) v ``[B, T, N, H]`` by what ``rule`` names and this call allows.

    ``q [B, T, N, H]``; ``k, v [B, K, S, H]``; ``seen [B, S]`` as of `attention.ends`;
    ``first``: the slot of the first of the T tokens.
    """
    chex.assert_rank([q, k, v, seen], [4, 4, 4, 2])
    alone = q.shape[1] == k.shape[2] and seen.dtype == bool
    fused = fused_for(rule, q.shape[1]) if alone else None
    if fused is not None:
        return fused.attend(q, k, v, seen, rule)
    if rule.window is not None:
        seen = in_window(seen, rule.window)
    attended = whole if rule.name == "xla" else in_blocks
    return attended(q, k, v, seen, rule.scores, first)


def fused_for(rule: Rule, tokens: int) -> Fused | None:
    """Return the kernel that computes ``tokens`` which look at each other, if one does.

    ``auto`` takes the one of this machine where it can do what the rule asks. One that
    is asked for by name is left out where the machine lacks it: the numbers are alike.
    """
    if rule.name != "auto":
        asked = FUSED.get(rule.name)
        return asked if asked is not None and asked.is_here() else None
    if tokens < SHORT:
        return None
    able = (x for x in FUSED.values() if x.is_here() and x.lacks(rule) is None)
    return next(able, None)


def queries_at_once(rule: Rule, tokens: int) -> int:
    """Return how many of ``tokens`` have scores in memory at the same time."""
    if fused_for(rule, tokens) is not None:
        return 0
    return tokens if rule.name == "xla" else block_size(tokens)


def by_cudnn(
    q: Array,
    k: Array,
    v: Array,
    seen: Array,
    rule: Rule,
    by: Literal["cudnn", "xla"] = "cudnn",
) -> Array:
    """`jax.nn.dot_product_attention` by ``cudnn`` or ``xla``.

    It knows padding behind a text alone, so that a row's real tokens go to its front;
    gradients need an even number of tokens.
    """
    order = jnp.argsort(~seen, axis=1, stable=True)[:, :, None, None]
    lengths = jnp.maximum(jnp.sum(seen.astype(jnp.int32), axis=1), 1)
    k, v = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
    q, k, v = (_behind(jnp.take_along_axis(x, order, axis=1), 2) for x in (q, k, v))
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        scale=1 / math.sqrt(rule.scores.dim),
        is_causal=True,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        local_window_size=None if rule.window is None else (rule.window - 1, 0),
        implementation=by,
    )
    return jnp.take_along_axis(out, jnp.argsort(order, axis=1), axis=1)


def _behind(x: Array, multiple: int) -> Array:
    """Return ``x [B, T, ...]`` with zeros behind, T a multiple."""
    more = ((0, 0), (0, -x.shape[1] % multiple)) + ((0, 0),) * (x.ndim - 2)
    return jnp.pad(x, more)


def cudnn_lacks(rule: Rule) -> str | None:
    """Return what a decoder asks that cuDNN has not (its support matrix, 9.18)."""
    if rule.scores.softcap is not None:
        return "has no softcap of scores"
    if rule.windows_differ:
        return "has one window for all layers"
    if rule.dtype != "bfloat16":
        return f"does not compute in {rule.dtype}: set model.compute_dtype=bfloat16"
    if rule.head_dim % 8 or rule.head_dim > 128:
        return f"has no head_dim = {rule.head_dim}: multiples of 8 up to 128"
    return None


def has_cudnn() -> bool:
    """Return whether the GPU is NVIDIA's, of compute capability 8.0 or later."""
    if jax.default_backend() != "gpu":
        return False
    number = str(getattr(jax.local_devices()[0], "compute_capability", ""))
    return bool(re.fullmatch(r"\d+\.\d+", number)) and float(number) >= 8.0


def by_splash(
    q: Array, k: Array, v: Array, seen: Array, rule: Rule, interpret: bool = False
) -> Array:
    """Splash, the TPU kernel of JAX; padding is a text of its own.

    It is not split by the compiler: each device runs it on its own rows and heads.
    """

    def own(q: Array, k: Array, v: Array, seen: Array) -> Array:
        return _splash(q, k, v, seen, rule, interpret)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return own(q, k, v, seen)
    rows = BATCH_AXES if _divides(mesh, BATCH_AXES, len(q)) else None
    heads = "tensor" if _divides(mesh, ("tensor",), k.shape[1]) else None
    spec, keys = PartitionSpec(rows, None, heads), PartitionSpec(rows, heads)
    return jax.shard_map(
        own,
        in_specs=(spec, keys, keys, PartitionSpec(rows)),
        out_specs=spec,
        check_vma=False,
    )(q, k, v, seen)


def _divides(mesh: jax.sharding.AbstractMesh, axes: tuple[str, ...], size: int) -> bool:
    return size % math.prod(mesh.shape[axis] for axis in axes) == 0


def _splash(
    q: Array, k: Array, v: Array, seen: Array, rule: Rule, interpret: bool
) -> Array:
    """Splash on the rows and heads of one device."""
    t, n = q.shape[1:3]
    q = q * jnp.asarray(rule.scores.dim**-0.5, q.dtype)
    k, v = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
    q, k, v = (jnp.swapaxes(_behind(x, TILE), 1, 2) for x in (q, k, v))
    kernel, of_texts = _splash_kernel(q.shape[2], n, rule, interpret)
    text = _behind(seen.astype(jnp.int32), TILE)
    out = jax.vmap(kernel)(q, k, v, of_texts(text, text))
    return jnp.swapaxes(out[:, :, :t], 1, 2)


def _splash_kernel(
    tokens: int, heads: int, rule: Rule, interpret: bool
) -> tuple[Callable[..., Array], Callable[..., Any]]:
    """Return Splash for one text, and the type of its numbers of texts."""
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as splash,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_mask as masks,
    )

    back = None if rule.window is None else rule.window - 1
    mask = masks.LocalMask((tokens, tokens), (back, 0), 0)
    size = next(size for size in (512, 256, TILE) if tokens % size == 0)
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(*(size,) * 8),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=rule.scores.softcap,
        interpret=interpret,
    )
    return kernel, splash.SegmentIds


def splash_lacks(rule: Rule) -> str | None:
    """Return what a decoder asks that Splash has not."""
    if rule.windows_differ:
        return "has one window for all layers"
    if rule.head_dim % 64:
        return f"has no head_dim = {rule.head_dim}: multiples of 64"
    return None


def is_tpu() -> bool:
    """Return whether programs run on TPUs."""
    return jax.default_backend() == "tpu"


FUSED = {
    "cudnn": Fused(by_cudnn, cudnn_lacks, has_cudnn),
    "splash": Fused(by_splash, splash_lacks, is_tpu),
}
IMPLEMENTATIONS = ("auto", "xla", "chunked", *FUSED)
"""Of ``model.attention``."""
