"""`dareu estimate`."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from dareu_jax.cli import options
from dareu_jax.cli.startup import prepare_jax
from dareu_jax.config import load_config

if TYPE_CHECKING:
    from dareu_jax.runs.estimate import Estimate

COLUMNS = {
    "held": lambda row: row.held,
    "grads,\nresults": lambda row: row.own.gradients + row.own.results,
    "kept": lambda row: row.own.kept,
    "layer": lambda row: row.own.layer,
    "logits": lambda row: row.own.logits,
    "KV\ncache": lambda row: row.own.cache,
    "gathered": lambda row: row.own.gathered,
    "total": lambda row: row.total,
}


def estimate(
    config: options.Config,
    overrides: options.Overrides = None,
    chips: Annotated[
        str, typer.Option(help="v5e-16, v5p-8, v6e-8 ... or cpu.")
    ] = "cpu",
) -> None:
    """Say what every step of a run needs on each device; nothing is loaded.

    The exit status is 1 where the largest step does not fit.
    """
    cfg = load_config(config, overrides or ())
    prepare_jax()
    from dareu_jax.runs import estimate as sizes

    found = sizes.estimate(cfg, sizes.read_chips(chips))
    print_estimate(Console(), found)
    if not found.fits:
        raise typer.Exit(1)


def print_estimate(console: Console, found: "Estimate") -> None:
    """Prints what is held, what every step needs, and whether it fits."""
    from dareu_jax.runs.estimate import GIB

    chips, peak = found.chips, found.peak
    unit, name = (GIB, "GiB") if peak.total >= GIB else (2**20, "MiB")
    devices = f"{chips.devices} device" + "s" * (chips.devices > 1)
    console.print(f"{chips.name}: {devices} of {chips.memory / GIB:.0f} GiB\n")
    held = _table(f"{name} held while unlearning", ["per device"])
    for part, size in found.held.items():
        held.add_row(part, f"{size / unit:.2f}")
    console.print(held)
    console.print()
    console.print(_steps(found, unit, name))
    verdict = "fits" if found.fits else "does not fit"
    console.print(
        f"\n{verdict}: {peak.name} takes {peak.total / chips.memory:.0%} of a device.\n"
        "Of a layer and the logits the larger counts: they are never needed at once.\n"
        "Not counted: the compiler's padding, tokens, and what other programs use."
    )


def _steps(found: "Estimate", unit: int, name: str) -> Table:
    """One line per step; stages are named where their sizes differ."""
    steps = _table(f"{name} per device", list(COLUMNS))
    names = [row.name for row in found.rows]
    for row in found.rows:
        many = names.count(row.name) > 1
        step = f"{row.name}: {', '.join(row.stages)}" if many else row.name
        sizes = [f"{of(row) / unit:.2f}" for of in COLUMNS.values()]
        steps.add_row(step, *sizes, style="bold" if row is found.peak else None)
    return steps


def _table(first: str, columns: list[str]) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0)
    )
    table.add_column(first, vertical="bottom", min_width=19)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True, vertical="bottom")
    return table
