"""`dareu evaluate`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dareu_jax.cli import options
from dareu_jax.cli.startup import check_disk, prepare_jax


def evaluate(
    folder: Annotated[
        Path, typer.Argument(help="Folder that dareu import or dareu run wrote.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the log.")],
    model: Annotated[
        str | None, typer.Option(help="Of a run: a row of its table (unlearned).")
    ] = None,
    seed: options.Seed = None,
    suite: Annotated[str, typer.Option(help="tofu, owners, muse or choices.")] = "tofu",
    data: Annotated[
        Path | None, typer.Option(help="Its files (tofu: downloaded).")
    ] = None,
    forget: options.ToForget = None,
    first: Annotated[
        int | None, typer.Option(min=1, help="Rows of each of TOFU's sets (all).")
    ] = None,
    template: options.Template = None,
    system: Annotated[str | None, typer.Option(help="Before it, with chat.")] = None,
    wording: options.Wording = None,
    batch_size: options.BatchSize = 16,
    max_new_tokens: options.MaxNewTokens = 200,
    attacks: options.Attacks = None,
    reference_model: Annotated[
        Path | None, typer.Option(help="Folder of the retrained model, for an attack.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Log of the retrained model.")
    ] = None,
    distributed: options.Distributed = False,
) -> None:
    """Judge a model by a benchmark: a log with every row, as open-unlearning has it."""
    check_disk(out)
    prepare_jax(distributed)
    from dareu_jax.parallel import is_first, together
    from dareu_jax.runs.benchmark import Asked, evaluated
    from dareu_jax.training.progress import Progress

    asked = Asked(
        model=folder,
        suite=suite,
        out=out,
        data=data,
        forget=forget,
        first=first,
        wording=options.wording_of(wording, template=template, system=system),
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        row=model,
        seed=seed,
        attacks=attacks,
        reference_model=reference_model,
    )
    progress = Progress(Console(stderr=True, quiet=not is_first()))
    with together():
        made = evaluated(asked, progress)
    if is_first():
        print_log(Console(), made, reference)
        Console(soft_wrap=True).print(f"log: {made}", markup=False)


def print_log(console: Console, path: Path, reference: Path | None) -> None:
    """Print the scores of a log, beside the reference's where both have the rows."""
    from dareu_jax.evaluation.logs.files import score_files
    from dareu_jax.reporting.log_plots import plot_files
    from dareu_jax.reporting.scores import print_scores
    from dareu_jax.storage.files import write_whole

    log = json.loads(path.read_text(encoding="utf-8"))
    attacks = [metric for metric in log if metric.startswith("mia_")]
    is_scored = "forget_Q_A_Prob" in log
    for metric, table in log.items():
        if not (is_scored or metric in attacks):
            console.print(f"{metric}: {table['agg_value']:.4f}", markup=False)
    if is_scored or attacks:
        print_scores(console, score_files(path, reference, partial=True))
        plots = path.with_suffix(".png")
        drawn = plot_files(path, reference, partial=True)
        if drawn is not None:
            write_whole(plots, drawn)
            console.print(f"plots: {plots}", markup=False, soft_wrap=True)
