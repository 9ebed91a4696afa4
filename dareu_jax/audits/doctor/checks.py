"""The checks of `dareu doctor`: pure functions from scores, or a score function."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dareu_jax.audits.fidelity.measures import correlations
from dareu_jax.data import TokenBatch

Array = np.ndarray
Score = Callable[[Any], Array]
"""From queries, a tree of arrays ``[B, ...]``, to scores ``[B, O]`` on the host."""
EXACT = 5e-6
"""Relative error below which float32 scores count as the same."""
LOOSEST = 1e-3
"""Relative error that no float32 score may have, however a model magnifies it."""
AGREE = 0.99
"""Least mean rank correlation over owners of a lower precision with float32."""
COARSE = 0.1
"""Largest relative error of a lower precision."""
FLAT = 1e-4
"""Share of the usual gradient norm below which a gradient is rounding noise."""
MANY = 0.1
"""Largest share of such queries."""
EXTRA = (1, 17)
"""Pads that `check_padding` adds."""


class Check(NamedTuple):
    """What was found.

    Attributes:
      name: of the check; value: None where it was not run; limit: of the value.
      passed: None where it was not run.
      meaning: of the value; remedy: what to do where the check fails.
      sign: ``<=`` or ``>=``, between a good value and the limit.
      scope: the dtype that the check is about; empty: the model as it is.
    """

    name: str
    value: float | None
    limit: float
    passed: bool | None
    meaning: str
    remedy: str = ""
    sign: str = "<="
    scope: str = ""


def below(name: str, value: float, limit: float, meaning: str, remedy: str) -> Check:
    """A check that value <= limit; a value that is no number fails."""
    return Check(name, float(value), limit, bool(value <= limit), meaning, remedy)


def relative(found: Array, wanted: Array) -> float:
    """max |found - wanted| / max |wanted|, 0 where they are equal."""
    if np.array_equal(found, wanted):
        return 0.0
    gap = np.abs(np.asarray(found, np.float64) - wanted).max()
    return float(gap / max(np.abs(wanted).max(), np.finfo(np.float32).tiny))


def agreement(found: Array, wanted: Array) -> float:
    """Mean over queries of Spearman's correlation over owners; equal rows count 1."""
    same = (found == wanted).all(axis=1)
    return float(np.where(same, 1.0, correlations(found, wanted)).mean())


def check_probe(found: Array, oracle: Array, limit: float) -> Check:
    """grad_dot by the probe against ``vmap(grad)``, both ``[B, O]`` in float32."""
    return below(
        "probe = vmap(grad)",
        relative(found, oracle),
        limit,
        "error of the gradient engine in float32",
        "no score of a gradient kernel holds here; take --kernel representation or "
        "bm25, and report the model's config.json and the devices",
    )


def check_ranks(dtype: str, found: Array, reference: Array) -> Check:
    """Owner ranks within a query in ``dtype`` against exact float32 products."""
    value = agreement(found, reference)
    meaning = "mean Spearman over owners, against exact float32"
    good, remedy = bool(value >= AGREE), remedy_of(dtype)
    return Check("rank agreement", value, AGREE, good, meaning, remedy, ">=", dtype)


def check_error(dtype: str, found: Array, reference: Array) -> Check:
    """Relative error in ``dtype`` against exact float32 products."""
    value, meaning = relative(found, reference), "of the scores, against exact float32"
    check = below("relative error", value, COARSE, meaning, remedy_of(dtype))
    return check._replace(scope=dtype)


def remedy_of(dtype: str) -> str:
    """What to do where a dtype is too coarse."""
    if dtype == "float32":
        return "set JAX_DEFAULT_MATMUL_PRECISION=highest in the environment"
    return "set model.compute_dtype=float32"


def exact_limit(noise: float) -> float:
    """Limit for float32 scores that should be the same: 4 ``noise``, 5e-6 to 1e-3.

    Args:
      noise: relative change of the scores by the last bit of every parameter, which
        says how far this model's depth and scale magnify float32 rounding.
    """
    return max(EXACT, min(4.0 * noise, LOOSEST))


def native_limit(exact: float, found: Array, reference: Array) -> float:
    """The limit for scores as they are: twice the rounding of their own dtype."""
    return max(exact, 2.0 * min(relative(found, reference), COARSE))


def padded(batch: TokenBatch, extra: int, fill: int) -> TokenBatch:
    """The batch with ``extra`` pads on either side, every pad the token ``fill``."""

    def widen(tokens: Array, mask: Array, sides: tuple[int, int]):
        tokens, mask = (np.pad(x, ((0, 0), sides)) for x in (tokens, mask))
        return np.where(mask, tokens, np.int32(fill)), mask

    prompt, before = widen(batch.prompt, batch.prompt_mask, (extra, 0))
    response, behind = widen(batch.response, batch.response_mask, (0, extra))
    return TokenBatch(prompt, before, response, behind, batch.index)


def check_padding(
    score: Score, queries: TokenBatch, fills: tuple[int, int], limit: float
) -> Check:
    """1 and 17 more pads, and pads of another id, against the queries as they are."""
    wanted = score(padded(queries, 0, fills[0]))
    changed = [padded(queries, extra, fills[0]) for extra in EXTRA]
    changed.append(padded(queries, 0, fills[1]))
    return below(
        "padding",
        np.max([relative(score(other), wanted) for other in changed]),
        limit,
        "change by 1 or 17 more pads, or other pad ids",
        "score texts of one length at a time (padding leaks into the scores), and "
        "report the model's config.json",
    )


def check_batching(score: Score, queries: Any, limit: float) -> Check:
    """The batch against its rows one at a time, and against another order."""

    def take(rows: Array) -> Any:
        return jax.tree.map(lambda x: x[rows], queries)

    wanted = score(queries)
    rows = np.arange(len(wanted))
    order = np.random.default_rng(0).permutation(rows)
    alone = np.concatenate([score(take(rows[i : i + 1])) for i in rows])
    shuffled = score(take(order))
    return below(
        "batch",
        np.max([relative(alone, wanted), relative(shuffled, wanted[order])]),
        limit,
        "change when rows are alone or in another order",
        "score one text at a time (--batch-size 1): scores depend on their neighbours",
    )


def check_devices(
    spread: Array, one: Array | None, devices: int, limit: float
) -> Check:
    """Scores over all devices against those of one; ``one`` is None: not run."""
    name = "devices"
    if one is None:
        only = "there is one device" if devices == 1 else "one device cannot hold it"
        return Check(name, None, limit, None, f"not run: {only}")
    return below(
        name,
        relative(spread, one),
        limit,
        f"change when {devices} devices share the work of one",
        "score on one device (CUDA_VISIBLE_DEVICES=0 or TPU_VISIBLE_CHIPS=0), and "
        "report the devices",
    )


def check_finite(scores: Array) -> Check:
    """Share of scores ``[B, O]`` that are no numbers."""
    return below(
        "finite",
        1.0 - np.isfinite(scores).mean(),
        0.0,
        "share of scores that are no finite number",
        "set model.compute_dtype=float32; where that fails too, import the weights "
        "again: some are not finite",
    )


def check_repeat(score: Score, queries: Any) -> Check:
    """The same call twice: how many scores have other bits."""
    first, second = (np.asarray(score(queries), np.float32) for _ in range(2))
    return below(
        "repeat",
        float((first.view(np.int32) != second.view(np.int32)).sum()),
        0.0,
        "scores with other bits when asked again",
        "set XLA_FLAGS=--xla_gpu_deterministic_ops=true",
    )


def check_saturation(norms: Array, usual: Array) -> Check:
    """Share of queries with a gradient of next to nothing.

    Float32 rounds a probability near 1 by 6e-8, so that less than `FLAT` of the norm
    at text that the model does not know is noise.

    Args:
      norms: ``[B]`` of the queries; usual: ``[N]`` with random tokens as responses.
    """
    return below(
        "saturation",
        1.0 - (norms > FLAT * np.median(usual)).mean(),
        MANY,
        f"share of queries whose gradient is below {FLAT:g} of usual",
        "leave those texts out, the model is certain of them: their scores are noise; "
        "give other text as --records",
    )


def failed(checks: Sequence[Check]) -> list[Check]:
    """The checks that ran and did not pass."""
    return [check for check in checks if check.passed is False]


def in_words(check: Check) -> str:
    """Such as ``rank agreement 0.93 < 0.99``."""
    if check.passed is None:
        return f"{check.name} {check.meaning}"
    sign = {"<=": (">", "<="), ">=": ("<", ">=")}[check.sign][check.passed]
    return f"{check.name} {check.value:.3g} {sign} {check.limit:.3g}"


def praise(checks: Sequence[Check]) -> str:
    """How many checks passed, the lowest rank agreement, and what was not run."""
    ran = [check for check in checks if check.passed]
    ranks = [check.value for check in ran if check.sign == ">=" and check.value]
    agree = f"owners rank alike in every dtype ({min(ranks):.3f}), " if ranks else ""
    left = dict.fromkeys(check.name for check in checks if check.passed is None)
    rest = f", not run: {', '.join(left)}" if left else ""
    return f"{agree}all {len(ran)} checks passed{rest}"


def verdict(checks: Sequence[Check]) -> str:
    """One sentence: whether scores can be trusted, why, and what to do if not."""
    about, bad = "Scores of this model on these devices", failed(checks)
    if not bad:
        return f"{about} can be trusted: {praise(checks)}."
    scopes = {check.scope for check in bad}
    where = f" in {bad[0].scope}" if len(scopes) == 1 and bad[0].scope else ""
    more = f" ({len(bad) - 1} more failed)" if len(bad) > 1 else ""
    why = f"{in_words(bad[0])}{more}; {bad[0].remedy}"
    return f"{about} cannot be trusted{where}: {why}."
