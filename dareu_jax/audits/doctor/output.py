"""The report of `dareu doctor`, for a terminal and as JSON."""

import functools
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dareu_jax.audits.doctor.checks import Check, failed, in_words, verdict
from dareu_jax.errors import UserError
from dareu_jax.storage.files import write_whole

RESULTS = {True: "[green]passed", False: "[bold red]FAILED", None: "[dim]not run"}


class Report(NamedTuple):
    """What was examined, and the checks of ``gradients`` and of every kernel."""

    model: str
    dtype: str
    devices: str
    text: str
    checks: dict[str, list[Check]]

    @property
    def all(self) -> list[Check]:
        """Every check, named after its kernel where there are several."""
        several = len(self.checks) > 3
        return [
            check._replace(name=f"{about}: {check.name}") if several else check
            for about, group in self.checks.items()
            for check in group
        ]

    @property
    def trusted(self) -> bool:
        """Whether no check failed."""
        return not failed(self.all)

    @property
    def verdict(self) -> str:
        """One sentence on all checks."""
        return verdict(self.all)


def print_report(console: Console, report: Report) -> None:
    """Prints every check, what to do about those that failed, and the verdict."""
    out = console if console.is_terminal else Console(file=console.file, width=120)
    about = f"{report.model} in {report.dtype} on {report.devices}"
    say = functools.partial(out.print, markup=False, highlight=False, soft_wrap=True)
    say(f"{about}; text: {report.text}\n")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in ("of", "check", "value", "limit", "", "meaning"):
        right = heading in ("value", "limit")
        table.add_column(heading, justify="right" if right else "left")
    for about, group in report.checks.items():
        for number, check in enumerate(group):
            table.add_row("" if number else about, *cells(check))
    out.print(table)
    for check in failed(report.all):
        say(f"\n{in_words(check)}: {check.meaning}.\n  {check.remedy}.")
    say(f"\n{report.verdict}", style="bold")


def cells(check: Check) -> tuple[str, ...]:
    """A row of the table."""
    value = "-" if check.value is None else f"{check.value:.3g}"
    limit = "" if check.value is None else f"{check.sign} {check.limit:.3g}"
    about = f"{check.name}, {check.scope}" if check.scope else check.name
    return about, value, limit, RESULTS[check.passed], escape(check.meaning)


def check_place(path: Path) -> None:
    """Raises `UserError` when a report cannot be written there."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UserError(f"--json {path}: give a file in a folder that exists")


def write(report: Report, path: Path) -> None:
    """Writes the report as JSON; a value that is no number becomes null."""
    rows = [
        {"of": about, **check._asdict(), "value": finite(check.value)}
        for about, group in report.checks.items()
        for check in group
    ]
    facts: dict[str, Any] = report._asdict()
    facts |= {"trusted": report.trusted, "verdict": report.verdict, "checks": rows}
    write_whole(path, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def finite(value: float | None) -> float | None:
    """The value, or None where it is no number."""
    return value if value is not None and math.isfinite(value) else None
