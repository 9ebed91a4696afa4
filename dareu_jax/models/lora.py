"""Low-rank adapters (Hu et al., 2021): y = x W + (alpha / r) x A B, W frozen.

Adapters are leaves ``lora_a [.., D, r]`` and ``lora_b [.., r, F]`` beside the
``kernel`` they adapt, so parameters with and without them go through the same model.
What is trained is the pytree that `split` puts first; code that joins the two parts
again cannot tell adapters from full parameters.
"""

import functools
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dareu_jax.errors import UserError

Array = jax.Array
A, B = "lora_a", "lora_b"
TARGETS = ("q", "k", "v", "o", "gate", "up", "down")


def split(params: Any) -> tuple[Any, Any]:
    """Returns ``(trainable, frozen)``: the adapters and the rest, or all and ``{}``."""
    adapters = leaves_where(params, lambda name: name in (A, B))
    if not adapters:
        return params, {}
    return adapters, leaves_where(params, lambda name: name not in (A, B))


def join(frozen: Any, trainable: Any) -> Any:
    """Returns the parameters whose `split` they are; nothing is copied."""
    if not isinstance(frozen, dict) or not isinstance(trainable, dict):
        return trainable
    return frozen | {
        name: join(frozen.get(name, {}), below) for name, below in trainable.items()
    }


def init_adapters(
    params: Any, rank: int, targets: Sequence[str] = TARGETS, *, key: Array
) -> Any:
    """Return fresh float32 adapters: A uniform within 1/sqrt(D), B zero.

    All of `TARGETS` means every dense layer of the blocks that the model has.
    """
    out: dict[str, Any] = {}
    found = set()
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        names = [str(part.key) for part in path]
        if names[-1] != "kernel" or names[-2] not in targets:
            continue
        found.add(names[-2])
        *stack, d, f = leaf.shape
        own = jax.random.fold_in(key, zlib.crc32("/".join(names).encode()))
        a = jax.random.uniform(own, (*stack, d, rank), minval=-1.0, maxval=1.0)
        here = out
        for name in names[:-1]:
            here = here.setdefault(name, {})
        here[A] = a.astype(jnp.float32) / jnp.sqrt(jnp.float32(d))
        here[B] = jnp.zeros((*stack, rank, f), jnp.float32)
    missing = sorted(set(targets) - found)
    if missing and set(targets) != set(TARGETS):
        raise UserError(f"lora.targets: no dense layer {missing[0]!r} in this model")
    return out


def abstract_adapters(params: Any, rank: int, targets: Sequence[str]) -> Any:
    """Return shapes and dtypes of `init_adapters`; nothing is made."""
    start = functools.partial(init_adapters, params, rank, targets)
    return jax.eval_shape(lambda key: start(key=key), jax.random.key(0))


def delta(a: Array, b: Array, alpha: float) -> Array:
    """(alpha / r) A B ``[.., D, F]`` float32."""
    return jnp.matmul(a, b) * (alpha / a.shape[-1])


def merge(params: Any, alpha: float) -> Any:
    """Returns parameters without adapters that compute the same, in their own dtype."""
    if not isinstance(params, dict):
        return params
    out = {name: merge(below, alpha) for name, below in params.items()}
    if A in out:
        kernel, a, b = out["kernel"], out.pop(A), out.pop(B)
        wide = kernel.astype(jnp.float32) + delta(a, b, alpha)
        out["kernel"] = wide.astype(kernel.dtype)
    return out


def leaves_where(params: Any, keep: Callable[[str], bool]) -> Any:
    """Returns the parameters whose own name ``keep`` holds for; no empty parts."""
    out = {}
    for name, below in params.items():
        if not isinstance(below, dict):
            if keep(name):
                out[name] = below
        elif inner := leaves_where(below, keep):
            out[name] = inner
    return out
