"""The scores of a log beside the reference's, for a terminal and as JSON."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from dareu_jax.evaluation.truth_ratio import TRUTH_RATIOS
from dareu_jax.evaluation.utility import TERMS

SETS = {"forget": "≈", "retain": "↑", "real_authors": "↑", "world_facts": "↑"}
SETS |= {"test": "↑"}
Ends = tuple[float, float]
MEASURES = {"probability": "prob", "rouge": "ROUGE-L recall"}
MEASURES |= {"truth_ratio": "truth ratio"}
LEGEND = "↑ higher is better, ↓ lower, ≈ closer to the reference"


def print_json(console: Console, found: Mapping[str, Any]) -> None:
    """Prints one object; what could not be computed is null."""
    text = json.dumps(found, indent=1, allow_nan=False)
    print(text, file=console.file)


def print_scores(console: Console, found: Mapping[str, Any]) -> None:
    """Prints which log was taken for what, the table, and what it means."""
    out = console if console.is_terminal else Console(file=console.file, width=120)
    beside = found["reference"]
    for name, one in (("candidate", found), ("reference", beside)):
        if one is not None:
            said(out, f"{name}: {one['candidate']} ({about(one)})")
    out.print()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("")
    table.add_column("candidate", justify="right")
    table.add_column("95 % of rows", justify="right")
    if beside is not None:
        table.add_column("reference", justify="right")
    others = {} if beside is None else {label: x for label, x, _ in rows(beside)}
    for label, value, ends in rows(found):
        between = "" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"
        cells = [value, between]
        cells += [] if beside is None else [others.get(label, "")]
        table.add_row(label, *cells)
    out.print(table)
    said(out, "\n" + "\n".join(remarks(found)))


def said(out: Console, text: str) -> None:
    """Prints text as it is."""
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def about(one: Mapping[str, Any]) -> str:
    """Format, rows of every set, and whether its ROUGE was computed again."""
    sets = one["sets"].items()
    counts = [f"{means['n']} {name.replace('_', ' ')}" for name, means in sets]
    facts = [one["format"], *([f"rows: {', '.join(counts)}"] if counts else [])]
    if one["rouge_checked"]:
        facts.append(f"ROUGE of {one['rouge_checked']} answers computed again, equal")
    return "; ".join(facts)


def rows(one: Mapping[str, Any]) -> Iterator[tuple[str, str, Ends | None]]:
    """Labels, values and intervals of what could be computed."""
    between = one["intervals"]
    comparisons = {
        "forget quality (KS p) ↑": (p_value(one), None),
        "log10 p ↑": (cell(one["log10_forget_quality"]), None),
        "KS distance ↓": (cell(one["ks_statistic"]), None),
        "Tug-of-War, ROUGE-L recall ↑": (cell(one["tow"]), between.get("tow")),
        "Tug-of-War without a test set ↑": (
            cell(one["tow_star"]),
            between.get("tow_star"),
        ),
        "model utility ↑": (cell(one["model_utility"]), between["model_utility"]),
    }
    yield from ((label, *x) for label, x in comparisons.items() if x[0])
    for name, arrow in SETS.items():
        for measure, short in MEASURES.items():
            if value := cell(one["sets"].get(name, {}).get(measure)):
                ends = between["sets"][name].get(measure)
                yield f"{name.replace('_', ' ')} {short} {arrow}", value, ends
    for name, area in one["mia_auc"].items():
        yield f"MIA AUC, {name} ≈", cell(area), between["mia_auc"][name]
    for name, leak in (one["privleak_by_attack"] or {}).items():
        yield f"PrivLeak, {name} (0 best)", f"{leak:.2f}", None


def cell(value: float | None) -> str:
    """Four decimals; empty where there is no value."""
    return "" if value is None else f"{value:.4f}"


def p_value(one: Mapping[str, Any]) -> str:
    """Three digits, also of what a float cannot hold."""
    p, power = one["forget_quality"], one["log10_forget_quality"]
    if p is None:
        return ""
    return f"{p:.3g}" if p > 0.0 else f"10^{power:.1f}"


def remarks(found: Mapping[str, Any]) -> Iterator[str]:
    """What the numbers are, and what they could not be."""
    yield LEGEND
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
    if found["reference"] is None:
        yield "no --reference: no forget quality, Tug-of-War and PrivLeak"
