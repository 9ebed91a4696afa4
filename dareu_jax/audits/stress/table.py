"""The outcomes of `dareu stress` as text."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from dareu_jax.audits.stress.context import ROLES, Stressed
from dareu_jax.audits.stress.robustness import robustness, robustness_sentence

WIDTH = 110
"""Characters of a line that holds the table and its sentences."""
LEGEND = (
    "The unlearned model does well where it is like the retrained one. A test that "
    "finds nothing says that this attempt found nothing; it is no proof that another "
    "would not."
)


def table_of(outcomes: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row per test, its parts below it."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("test", no_wrap=True)
    table.add_column("what is measured", no_wrap=True)
    for role in ROLES:
        table.add_column(role, justify="right", no_wrap=True)
    table.add_column("R or Q", justify="right", no_wrap=True)
    for name, found in outcomes.items():
        numbers = cells(found["headline"])
        own = written(robustness(found))
        table.add_row(name, found["measure"], *numbers, own, style="bold")
        for label, part in found["parts"].items():
            table.add_row("", label, *cells(part), "")
        for label in found.get("skipped", {}):
            table.add_row("", f"{label}: left out", *["–"] * len(ROLES), "")
    return table


def cells(numbers: Mapping[str, float]) -> list[str]:
    """Three digits of every role's number; ``none`` where a run lacks the model."""
    return [f"{numbers[role]:.3f}" if role in numbers else "none" for role in ROLES]


def written(value: float | None) -> str:
    """Three digits, or nothing."""
    return "" if value is None else f"{value:.3f}"


def print_stress(console: Console, found: Stressed) -> None:
    """Prints the table, what every test says and where it is kept."""
    out = Console(file=console.file, width=max(console.width, WIDTH))
    out.print(found.scale, markup=False, highlight=False)
    out.print(f"unlearned: {found.model}", markup=False, highlight=False)
    out.print(table_of(found.outcomes))
    out.print()
    for name, one in found.outcomes.items():
        out.print(f"{name}: {one['verdict']}", markup=False, highlight=False)
        for label, reason in one.get("skipped", {}).items():
            out.print(f"{name}: {label} left out, {reason}.", markup=False)
    if said := robustness_sentence(found.outcomes):
        out.print(said, markup=False, highlight=False)
    out.print(LEGEND, style="dim", markup=False)
