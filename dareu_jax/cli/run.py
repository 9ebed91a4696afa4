"""`dareu run`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dareu_jax.cli import options
from dareu_jax.cli.startup import check_disk, prepare_jax, read_steps
from dareu_jax.config import load_config


def run(
    config: options.Config,
    overrides: options.Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder (default: runs/<config's folder>).")
    ] = None,
    distributed: options.Distributed = False,
    profile: Annotated[
        str | None,
        typer.Option(metavar="A:B", help="Trace steps A to B of every stage."),
    ] = None,
) -> None:
    """Fine-tune, attribute, unlearn, compare with retraining, report.

    The same command again continues where it was stopped.
    """
    cfg = load_config(config, overrides or ())
    folder = out or Path("runs") / config.resolve().parent.name
    check_disk(folder)
    traced = read_steps(profile) if profile else None
    prepare_jax(distributed)
    from dareu_jax.config import dump_config
    from dareu_jax.parallel import Preemption, is_first, together
    from dareu_jax.reporting import print_answers, print_results
    from dareu_jax.reporting.report import render
    from dareu_jax.runs import pipeline
    from dareu_jax.storage.files import write_whole
    from dareu_jax.training.progress import Progress
    from dareu_jax.training.tracking import read

    console = Console(quiet=not is_first())
    with together(), Preemption().listening() as preemption:
        results, answers = pipeline.run(
            cfg, folder, Progress(console), preemption, traced
        )
    if not is_first():
        return
    page = render(results, read(folder), answers, dump_config(cfg))
    write_whole(folder / "report.html", page)
    console.print()
    print_answers(console, answers, cfg.evaluation.answers)
    print_results(console, results)
    console.print(f"results: {folder / 'results.json'}", soft_wrap=True)
    console.print(f"report:  {folder / 'report.html'}", soft_wrap=True)
