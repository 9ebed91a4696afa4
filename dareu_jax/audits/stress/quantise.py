"""Quantisation: do coarser weights bring the forget records back?

Weights are rounded as the format would and kept as floats: what a product with them
gives is what the format's own kernels give, up to the order of sums.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dareu_jax.audits.stress.context import Context, means, outcome, stress_test
from dareu_jax.audits.stress.verdict import SMALLEST, paired_gap
from dareu_jax.models import merge

Array = jax.Array
BLOCK = 64
"""Weights that share one scale (QLoRA, Dettmers et al., 2023)."""
_LEVELS = (
    "-1.0 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453 "
    "-0.28444138169288635 -0.18477343022823334 -0.09105003625154495 0.0 "
    "0.07958029955625534 0.16093020141124725 0.24611230194568634 "
    "0.33791524171829224 0.44070982933044434 0.5626170039176941 0.7229568362236023 "
    "1.0"
)
NF4 = tuple(float(level) for level in _LEVELS.split())
"""The 16 levels of NormalFloat (QLoRA, appendix E)."""
INT4 = tuple(level / 7 for level in range(-7, 8))
"""Symmetric 4-bit integers."""
MORE = "with coarse weights it knows what a model that never saw the records lacks"


def quantisation_robustness(after: float, before: float) -> float:
    """Q = min(m_after / m_before, 1) of a knowledge metric m; 1 where m_before is 0."""
    return min(after / before, 1.0) if before > 0.0 else 1.0


def int8(kernel: Array) -> Array:
    """round(127 w / s) s / 127 with s = max |w| of each output channel."""
    scale = jnp.max(jnp.abs(kernel), axis=-2, keepdims=True) / 127.0
    return jnp.round(kernel / jnp.where(scale > 0.0, scale, 1.0)) * scale


def blockwise(levels: tuple[float, ...], kernel: Array) -> Array:
    """The nearest of ``levels`` times s, s = max |w| of each block of `BLOCK` weights.

    Blocks run along the inputs of one output channel after another, as in a linear
    layer stored ``[F, D]``; the last may be shorter.
    """
    flat = kernel.T.reshape(-1)
    blocks = jnp.pad(flat, (0, -flat.size % BLOCK)).reshape(-1, BLOCK)
    scale = jnp.max(jnp.abs(blocks), axis=1, keepdims=True)
    table = jnp.asarray(levels, jnp.float32)
    between = (table[1:] + table[:-1]) / 2.0
    unit = blocks / jnp.where(scale > 0.0, scale, 1.0)
    rounded = table[jnp.searchsorted(between, unit)] * scale
    return rounded.reshape(-1)[: flat.size].reshape(kernel.T.shape).T


nf4 = functools.partial(blockwise, NF4)
int4 = functools.partial(blockwise, INT4)
FORMATS: dict[str, Callable[[Array], Array]] = {"int8": int8, "int4": int4, "nf4": nf4}


def quantised(params: Any, rounding: Callable[[Array], Array]) -> Any:
    """Parameters with the dense layers' ``[L, D, F]`` kernels rounded.

    Embeddings, the output head, norms and biases stay, as in bitsandbytes.
    """

    def rounded(path: Any, leaf: Array) -> Array:
        if path[-1].key != "kernel":
            return leaf
        return jax.vmap(rounding)(leaf.astype(jnp.float32)).astype(leaf.dtype)

    layers = jax.tree_util.tree_map_with_path(rounded, params["layers"])
    return {**params, "layers": layers}


@stress_test("quantise", "weights in int8, int4 and NF4")
def quantise(context: Context) -> dict[str, Any]:
    """Probability of the forget answers with weights in each of `FORMATS`.

    The headline is NF4's; ``robustness`` has Q of the unlearned model, of probability
    and of ROUGE. It is 1 where rounding brings records back: `brought_back` says that.
    Adapters are merged into the weights that they adapt.
    """
    run, alpha = context.run, context.run.inputs.model.cfg.lora_alpha
    whole = {
        role: run.inputs.made(functools.partial(merge, alpha=alpha), params)
        for role, params in context.models.items()
    }
    found: dict[str, dict[str, Any]] = {"unrounded": {}, **{n: {} for n in FORMATS}}
    rouge: dict[str, dict[str, Any]] = {name: {} for name in found}
    with run.progress.stage("quantise", len(whole) * len(found)) as advance:
        for done, (name, role) in enumerate((n, r) for n in found for r in whole):
            params = whole[role]
            if name in FORMATS:
                how = functools.partial(quantised, rounding=FORMATS[name])
                params = run.inputs.made(how, params)
            found[name][role] = context.probability(params)
            rouge[name][role] = context.rouge(params)
            advance(done + 1, f"{name} {role}")
    measures = {"probability": found, "rouge": rouge}
    robustness = {
        name: {label: robustness_of(own, name) for label, own in measures.items()}
        for name in FORMATS
    }
    before = means(found["unrounded"])["unlearned"]
    parts = {f"probability, {k}": own for k, own in found.items() if k != "nf4"}
    return outcome(
        "forget probability in NF4",
        found["nf4"],
        MORE,
        parts=parts | {f"ROUGE, {name}": own for name, own in rouge.items()},
        also=f"Unrounded it has {before:.3f}: Q = "
        f"{robustness['nf4']['probability']:.2f}."
        + brought_back(found["nf4"]["unlearned"], found["unrounded"]["unlearned"]),
        robustness=robustness,
    )


def brought_back(after: Sequence[float], before: Sequence[float]) -> str:
    """Says that rounding raised a value by over two standard errors, or ""."""
    gap, error = paired_gap(after, before)
    if gap <= 2 * error or gap < SMALLEST:
        return ""
    return f" Rounding alone brings {gap:.3f} ± {error:.3f} back."


def robustness_of(found: dict[str, dict[str, list[float]]], name: str) -> float:
    """Q of the unlearned model's mean in the format ``name``."""
    after, before = means(found[name]), means(found["unrounded"])
    return quantisation_robustness(after["unlearned"], before["unlearned"])
