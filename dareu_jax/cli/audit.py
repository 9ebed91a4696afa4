"""`dareu doctor`, `dareu fidelity` and `dareu stress`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dareu_jax.cli import options
from dareu_jax.cli.startup import check_disk, prepare_jax
from dareu_jax.config import load_config


def fidelity(
    config: options.Config,
    overrides: options.Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder (default: runs/<config's folder>_<its name>)."),
    ] = None,
) -> None:
    """Retrain without owners and see which kernel said it beforehand.

    The same command again continues where it was stopped.
    """
    cfg = load_config(config, overrides or ())
    folder = out or Path("runs") / f"{config.resolve().parent.name}_{config.stem}"
    check_disk(folder)
    prepare_jax()
    from dareu_jax.audits import fidelity as against
    from dareu_jax.training.progress import Progress

    console = Console()
    results = against.fidelity(cfg, folder, Progress(console))
    against.print_fidelity(console, results)
    console.print(f"results: {folder / 'fidelity.json'}", soft_wrap=True)
    console.print(f"plot:    {folder / 'fidelity.svg'}", soft_wrap=True)


def stress(
    run_folder: options.Finished,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="stress.key=value, over the run's.")
    ] = None,
    tests: options.Tests = None,
    model: options.Row = "unlearned",
    seed: options.Seed = None,
    distributed: options.Distributed = False,
) -> None:
    """Try to bring unlearned data back, beside the retrained model.

    The same command again runs what is missing.
    """
    prepare_jax(distributed)
    from dareu_jax.audits import stress as attempts
    from dareu_jax.parallel import Preemption, is_first, together
    from dareu_jax.training.progress import Progress

    console = Console(quiet=not is_first())
    progress, names = Progress(console), tests or ()
    with together(), Preemption().listening() as preemption:
        made = attempts.stress(
            run_folder, progress, names, model, seed, overrides or (), preemption
        )
    if not is_first():
        return
    attempts.print_stress(console, made)
    console.print(f"kept in: {made.folder}", soft_wrap=True, markup=False)
    console.print(f"report:  {made.report}", soft_wrap=True, markup=False)


def doctor(
    model: options.ImportedModel,
    records: Annotated[
        Path | None,
        typer.Option(help="JSON: owner, prompt, response; none: the model's own."),
    ] = None,
    kernel: options.Kernels = None,
    rows: Annotated[int, typer.Option(min=2, help="Texts indexed, and asked.")] = 16,
    out: Annotated[
        Path | None, typer.Option("--json", help="File for the report.")
    ] = None,
    plugin: options.Plugins = None,
) -> None:
    """Say whether attribution scores of a model on these devices can be trusted.

    The exit status is 1 where a check fails.
    """
    prepare_jax()
    from dareu_jax.audits import doctor as self_test

    if out is not None:
        self_test.check_place(out)
    report = self_test.examine(model, records, kernel or ("grad_dot",), rows)
    self_test.print_report(Console(), report)
    if out is not None:
        self_test.write(report, out)
    if not report.trusted:
        raise typer.Exit(1)
