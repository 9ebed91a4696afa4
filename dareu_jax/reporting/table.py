"""Tables of results and of answers, for a terminal or a file."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from dareu_jax.evaluation.metrics.metric import Metric
from dareu_jax.reporting import summary

_FILE_WIDTH = 200


def results_table(results: Mapping[str, Any], *groups: str) -> Table:
    """Return one row per model and one column per metric of the groups; none: all."""
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True
    )
    table.add_column("model", no_wrap=True, vertical="bottom")
    shown = summary.columns(results, *groups)
    for metric in shown:
        table.add_column(_heading(metric), justify="right", no_wrap=True)
    for name in summary.model_names(results):
        cells = [summary.cell(results, name, metric) for metric in shown]
        table.add_row(name, *cells, style="bold" if name == "retrained" else None)
    return table


def print_results(console: Console, results: Mapping[str, Any]) -> None:
    """Print every metric in as few tables as the width allows, then the legend."""
    out = _roomy(console)
    wide = [results_table(results, *groups) for groups in summary.TABLES.values()]
    groups = itertools.chain(*summary.TABLES.values())
    narrow = [results_table(results, group) for group in groups]
    options = out.options.update(width=_FILE_WIDTH)
    widths = [Measurement.get(out, options, table).maximum for table in wide]
    fits = all(width <= out.width for width in widths)
    for table in wide if fits else narrow:
        if len(table.columns) > 1:
            out.print(table)
            out.print()
    out.print(Text(_legend(results)), style="dim")


def print_answers(
    console: Console, answers: Sequence[Mapping[str, Any]], n: int = 10
) -> None:
    """Print the first ``n`` prompts with what gold, oracles and one method say."""
    out = _roomy(console)
    for number, answer in enumerate(answers[:n], start=1):
        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True, style="dim")
        grid.add_column(overflow="fold")
        grid.add_row(f"{number}", Text(_printable(answer["prompt"]), style="bold"))
        grid.add_row("gold", Text(_printable(answer["gold"]), style="green"))
        for name in summary.with_one_method(answer["answers"]):
            grid.add_row(name, Text(_printable(answer["answers"][name])))
        out.print(grid)
        out.print()


def _heading(metric: Metric) -> str:
    first, _, rest = metric.label.partition(" ")
    return f"{first}\n{rest} {metric.arrow}"


def _legend(results: Mapping[str, Any]) -> str:
    seeds = len(results.get("seeds", {}))
    count = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    return "\n".join([summary.legend(results), count, *summary.gaps(results)])


def _printable(text: str) -> str:
    """Return ``text`` with control characters spelled out; never an empty string."""
    shown = "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode()
        for c in text
    )
    return shown if shown.strip() else "(empty)"


def _roomy(console: Console) -> Console:
    """Return the console itself, or a wide one on the same file if no terminal."""
    if console.is_terminal or console.width >= _FILE_WIDTH:
        return console
    return Console(file=console.file, width=_FILE_WIDTH, color_system=None)
