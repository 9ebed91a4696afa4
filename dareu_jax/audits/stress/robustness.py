"""R of relearning and Q of quantisation, each 1 at best, and both in one number."""

from collections.abc import Mapping
from typing import Any

from dareu_jax.audits.stress.relearn import MEAN


def robustness(found: Mapping[str, Any]) -> float | None:
    """R of the mean gain on the forget records, Q of probability in NF4, or None."""
    own = found.get("robustness", {})
    value = own.get(MEAN, own.get("nf4"))
    return value["probability"] if isinstance(value, Mapping) else value


def harmonic_mean(r: float, q: float) -> float:
    """2 R Q / (R + Q), in [0, 1]; 0 where both are (Dorna et al., 2025)."""
    return 2.0 * r * q / (r + q) if r + q > 0.0 else 0.0


def robustness_sentence(outcomes: Mapping[str, Mapping[str, Any]]) -> str:
    """The harmonic mean of R and Q in words, or "" where a run lacks one of them."""
    r, q = (robustness(outcomes.get(name, {})) for name in ("relearn", "quantise"))
    if r is None or q is None:
        return ""
    return (
        f"Robustness, the harmonic mean of R = {r:.3f} (relearn) and Q = {q:.3f} "
        f"(quantise): {harmonic_mean(r, q):.3f}. Q falls by what rounding takes away; "
        "what it brings back is in quantise's sentence."
    )
