"""The scores of a log beside the reference's, as a table or as JSON."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from dareu_jax.evaluation.logs.scores import by_metric
from dareu_jax.evaluation.metrics.metric import Metric
from dareu_jax.evaluation.metrics.truth_ratio import TRUTH_RATIOS
from dareu_jax.evaluation.metrics.utility import TERMS
from dareu_jax.registry import METRICS

ONLY_JSON = ("rel_diff",)
LEGEND = "↑ higher is better, ↓ lower, ≈ closer to the reference"
RECALL = "ROUGE: ROUGE-L recall of the answers"


def print_json(console: Console, found: Mapping[str, Any]) -> None:
    """Print one object; what could not be computed is null."""
    text = json.dumps(found, indent=1, allow_nan=False)
    print(text, file=console.file)


def print_scores(console: Console, found: Mapping[str, Any]) -> None:
    """Print which log was taken for what, the table, and what it means."""
    out = console if console.is_terminal else Console(file=console.file, width=120)
    beside = found["reference"]
    for name, one in (("candidate", found), ("reference", beside)):
        if one is not None:
            said(out, f"{name}: {one['candidate']} ({about(one)})")
    if found["retrained_again"] is not None:
        said(out, f"retrained again: {found['retrained_again']}")
    out.print()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("")
    table.add_column("candidate", justify="right")
    table.add_column("95 % of rows", justify="right")
    if beside is not None:
        table.add_column("reference", justify="right")
    others = {} if beside is None else dict(rows(beside))
    between = dict(ends(found["intervals"]))
    for label, value in rows(found):
        cells = (value, between.get(label, ""), others.get(label, ""))
        table.add_row(label, *cells[: len(table.columns) - 1])
    out.print(table)
    said(out, "\n" + "\n".join([*flags(found), *skipped(found), *remarks(found)]))


def said(out: Console, text: str) -> None:
    """Print text as it is."""
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def about(one: Mapping[str, Any]) -> str:
    """Return format, rows of every set, and whether its ROUGE was computed again."""
    sets = one["sets"].items()
    counts = [f"{means['n']} {name.replace('_', ' ')}" for name, means in sets]
    facts = [one["format"], *([f"rows: {', '.join(counts)}"] if counts else [])]
    if one["rouge_checked"]:
        facts.append(f"ROUGE of {one['rouge_checked']} answers computed again, equal")
    return "; ".join(facts)


def rows(one: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield labels and values of what could be computed."""
    for metric, attack, value in scored(one):
        yield labelled(metric, attack), cell(metric, value, one)


def ends(between: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield labels and intervals of what was drawn again."""
    for metric, attack, (low, high) in scored(between):
        yield labelled(metric, attack), f"{low:.3f} to {high:.3f}"


def scored(tree: Mapping[str, Any]) -> Iterator[tuple[Metric, str, Any]]:
    """Yield every score of a log, or interval: metric, attack or "", value."""
    for name, values in by_metric(tree).items():
        if name not in ONLY_JSON:
            yield from ((METRICS.get(name), *of) for of in values.items())


def labelled(metric: Metric, attack: str) -> str:
    """Return the name of a line, with the metric's arrow."""
    return f"{metric.label}{attack and f', {attack}'} {metric.arrow}"


def cell(metric: Metric, value: float, one: Mapping[str, Any]) -> str:
    """Return a value with 3 digits (a p), 2 decimals (percent) or 4 (all else)."""
    if f"log10_{metric.name}" in one:
        power = one[f"log10_{metric.name}"]
        return f"{value:.3g}" if value > 0.0 else f"10^{power:.1f}"
    return f"{value:.2f}" if math.isinf(metric.high) else f"{value:.4f}"


def flags(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield signs of a broken model, the candidate's and the reference's."""
    yield from (f"! {flag}" for flag in found["flags"])
    if found["reference"] is not None:
        yield from (f"! reference: {flag}" for flag in found["reference"]["flags"])


def skipped(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield how many rows of which metric have no finite value, for each log."""
    logs = {"": found, "reference: ": found["reference"] or {"skipped": {}}}
    for whose, one in logs.items():
        counts = [
            f"{count} of {name}, {metric}"
            for name, metrics in one["skipped"].items()
            for metric, count in metrics.items()
        ]
        if counts:
            yield f"! {whose}rows without a finite value, left out: {'; '.join(counts)}"


def remarks(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield sentences on what the numbers are, and on what is missing."""
    yield LEGEND
    if any(means["rouge"] is not None for means in found["sets"].values()):
        yield RECALL
    name = found["truth_ratio"]
    if any(means["truth_ratio"] is not None for means in found["sets"].values()):
        yield f"truth ratio: {name}, {TRUTH_RATIOS[name].formula}"
        missing = [x for x in TERMS if x not in found["model_utility_terms"]]
        if missing and found["model_utility_terms"]:
            yield f"no model utility: the log lacks {', '.join(missing)}"
    if found["at_floor"]:
        yield (
            "forget quality is at its floor: every truth ratio of one model lies above "
            f"all of the other, {found['n_forget']} rows cannot say more"
        )
    if found["forget_quality_of_retrainings"] is not None:
        yield (
            "two retrainings: forget quality of one beside the other, the most that a "
            "perfect method can expect"
        )
    if found["reference"] is None:
        yield "no --reference: no forget quality, Tug-of-War and PrivLeak"
