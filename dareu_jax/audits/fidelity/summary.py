"""From scores and outcomes of every seed to one table with intervals."""

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from dareu_jax.audits.fidelity import measures as metrics
from dareu_jax.audits.fidelity.trial import Outcomes, Scores
from dareu_jax.evaluation.metrics.bootstrap import intervals_of
from dareu_jax.runs.validity import higher

COLUMNS = {
    "lds": "LDS ↑",
    "leave_one_out": "leave\none out ↑",
    "recall": "recall\nat 1 ↑",
    "mrr": "MRR ↑",
    "ece": "ECE ↓",
    "tail_patch": "tail\npatch ↑",
    "brittleness": "brittle-\nness ↑",
    "validity": "validity ↑",
}
WIDTH = 100
"""Characters of a line that holds the whole table."""
SHOWN = ("lds", "validity")
"""Metrics printed with their intervals; fidelity.json has every other's."""
LEGEND = (
    "LDS: Spearman correlation, per query over subsets of owners, of the summed scores "
    "with the likelihood under a model trained on that subset. "
    "Leave one out: of the scores with what each owner's absence costs. "
    "Recall at 1, MRR: of the owner that was asked about. "
    "ECE: of the scores as probabilities. "
    "Tail patch: what one step on the records of the best-scoring owner adds to a "
    "token's log-likelihood, above the owners' mean, in thousandths of a nat. "
    "Brittleness: share of answers that lose half of a token's likelihood without the "
    "best-scoring owner. Validity: chance (AUC) that an answer of the original has a "
    "higher score of the owner who is asked about than one of a model that was trained "
    "without that owner; a reward below .8 names those who never saw the owner too. "
    "In brackets: 95 % of bootstrap draws of the queries, and of "
    "the subsets for LDS, of every seed."
)
Array = np.ndarray
Draw = Sequence[tuple[Array, Array]]
"""Queries and subsets of every seed, by their numbers."""


def per_query(scores: Scores, found: Outcomes) -> dict[str, Array]:
    """Every metric that has a value for each query, ``[Q]``."""
    raw = scores.raw
    return {
        "leave_one_out": metrics.leave_one_out(raw, found.whole, found.without),
        "recall": metrics.top_is_right(raw, found.owner),
        "mrr": metrics.reciprocal_ranks(raw, found.owner),
        "tail_patch": metrics.tail_patch(raw, found.gains),
        "brittleness": metrics.brittleness(raw, found.whole, found.without),
    }


def lds_of(scores: Scores, found: Outcomes, rows: Array, at: Array) -> Array:
    """LDS of the queries ``rows`` over the subsets ``at``."""
    outcomes = found.subsets[0][np.ix_(rows, at)]
    return metrics.lds(scores.raw[rows], found.masks[at], outcomes)


def validity_of(scores: Scores, found: Outcomes, rows: Array) -> dict[str, float]:
    """Validity on the queries ``rows``; nothing without counterfactual answers."""
    if scores.counterfactual is None:
        return {}
    said = scores.raw if scores.calibrated is None else scores.calibrated
    own = (rows, found.owner[rows])
    return {"validity": higher(said[own], scores.counterfactual[own])}


def drawn(
    scores: Sequence[Scores],
    found: Sequence[Outcomes],
    values: Sequence[Mapping[str, Array]],
    draw: Draw,
) -> dict[str, float]:
    """Metric -> its mean over seeds on the queries and subsets of a draw."""
    seeds = list(zip(scores, found, values, draw, strict=True))
    each = [
        {name: own[rows].mean() for name, own in v.items()}
        | {"lds": lds_of(s, f, rows, at).mean(), **validity_of(s, f, rows)}
        for s, f, v, (rows, at) in seeds
    ]
    out = {name: float(np.mean([x[name] for x in each])) for name in each[0]}
    sure = [(s.calibrated, f.owner, rows) for s, f, _, (rows, _) in seeds]
    if all(p is not None for p, _, _ in sure):
        p = np.concatenate([p[rows] for p, _, rows in sure if p is not None])
        owner = np.concatenate([owner[rows] for _, owner, rows in sure])
        out["ece"] = metrics.calibration_error(p, owner)
    return out


def summarise(
    scores: Sequence[Scores], found: Sequence[Outcomes], draws: int
) -> dict[str, dict[str, float]]:
    """Metric -> value, 95 % interval of ``draws`` bootstrap draws, value per seed."""
    values = [per_query(*pair) for pair in zip(scores, found, strict=True)]
    sizes = [(len(f.owner), len(f.masks)) for f in found]
    all_of = [(np.arange(q), np.arange(m)) for q, m in sizes]
    point = drawn(scores, found, values, all_of)

    def redrawn(*rows: Array) -> list[float]:
        draw = list(zip(rows[::2], rows[1::2], strict=True))
        return list(drawn(scores, found, values, draw).values())

    flat = [size for pair in sizes for size in pair]
    ends = zip(point, *intervals_of(redrawn, flat, draws), strict=True)
    between = {name: pair for name, *pair in ends}
    each = [
        drawn([s], [f], [v], [a])
        for s, f, v, a in zip(scores, found, values, all_of, strict=True)
    ]
    out: dict[str, dict[str, Any]] = {}
    for name in COLUMNS:
        if name in point:
            low, high = between[name]
            seeds = [rounded(x[name]) for x in each]
            interval = {"low": rounded(low), "high": rounded(high)}
            out[name] = {"value": rounded(point[name]), **interval, "seeds": seeds}
    return out


def rounded(value: float) -> float:
    """Four digits, and never a negative zero."""
    return round(float(value), 4) + 0.0


def ceiling(found: Sequence[Outcomes]) -> float | None:
    """Agreement of the same retrainings with two seeds, on the gold answers.

    Mean Spearman correlation over subsets, as the LDS; None with one seed.
    """
    pairs = list(combinations([f.subsets[1] for f in found], 2))
    if not pairs:
        return None
    return rounded(np.mean([metrics.correlations(a, b) for a, b in pairs]))


def table_of(results: Mapping[str, Any]) -> Table:
    """One row per kernel, best LDS first."""
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0)
    )
    table.add_column("kernel", no_wrap=True)
    for heading in COLUMNS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    kernels = results["kernels"]
    for label in sorted(kernels, key=lambda k: -kernels[k]["lds"]["value"]):
        row = kernels[label]
        table.add_row(label, *(cell(name, row.get(name)) for name in COLUMNS))
    return table


def cell(name: str, found: Mapping[str, Any] | None) -> str:
    """A metric's value, with its interval if it is `SHOWN`: ``.44 (.40, .48)``."""
    if found is None:
        return "-"
    if name == "tail_patch":
        return f"{1000.0 * found['value']:z.1f}"
    value, low, high = (short(found[key]) for key in ("value", "low", "high"))
    return f"{value} ({low}, {high})" if name in SHOWN else value


def short(value: float) -> str:
    """Two digits, such as ``.44``, ``-.10``, ``1.00``."""
    text = f"{value:z.2f}"
    return re.sub(r"^(-?)0\.", r"\1.", text)


def print_fidelity(console: Console, results: Mapping[str, Any]) -> None:
    """Prints the scale, the table and what its columns mean."""
    out = Console(file=console.file, width=max(console.width, WIDTH))
    console.print(results["scale"], markup=False)
    out.print(table_of(results))
    if results["ceiling"] is not None:
        console.print(
            "Two retrainings on the same owners with different seeds agree to "
            f"{short(results['ceiling'])} (Spearman, as LDS): the noise ceiling. A "
            "kernel that knew the mean outcome would reach about "
            f"{short(max(results['ceiling'], 0.0) ** 0.5)}, its square root."
        )
    console.print(LEGEND, style="dim", markup=False)
