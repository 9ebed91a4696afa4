"""`dareu attribute`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dareu_jax.cli import options
from dareu_jax.cli.startup import check_disk, prepare_jax


def attribute(
    model: options.ImportedModel,
    records: Annotated[
        Path, typer.Argument(help="JSON: owner, prompt, response of training text.")
    ],
    queries: Annotated[
        Path, typer.Argument(help="JSON: prompt, response; without one it is asked.")
    ],
    kernel: Annotated[
        str | None, typer.Option(help="Of dareu list kernels (grad_dot).")
    ] = None,
    index: Annotated[
        Path | None, typer.Option(help="Folder: read if it is there, else made.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="scores.csv or scores.json.")] = None,
    top: Annotated[int, typer.Option(min=0, help="Records named per answer.")] = 0,
    owner: Annotated[
        str | None, typer.Option(help="Name records of this owner alone (--top 5).")
    ] = None,
    template: options.Template = None,
    wording: options.Wording = None,
    batch_size: options.BatchSize = 8,
    max_new_tokens: options.MaxNewTokens = 64,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="attribution.damping=0.01, ...")
    ] = None,
    plugin: options.Plugins = None,
) -> None:
    """Say whose text answers come from: a score for every owner, the top records."""
    prepare_jax()
    from dareu_jax.attribution.asked import Asked, attributed
    from dareu_jax.reporting.attribution import as_file, check_out, print_attributed
    from dareu_jax.storage.files import write_whole
    from dareu_jax.training.progress import Progress

    if out is not None:
        check_out(out)
    if index is not None:
        check_disk(index)
    asked = Asked(
        model=model,
        records=records,
        queries=queries,
        index=index,
        kernel=kernel,
        wording=options.wording_of(wording, template=template),
        changes=change or (),
        batch_size=batch_size,
        top=top or (5 if owner else 0),
        owner=owner,
        max_new_tokens=max_new_tokens,
    )
    found = attributed(asked, Progress(Console(stderr=True)))
    console = Console()
    print_attributed(console, found)
    if out is not None:
        write_whole(out, as_file(found, out))
        console.print(f"scores: {out}", soft_wrap=True, markup=False)
