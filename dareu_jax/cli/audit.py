"""`dareu doctor`, `dareu fidelity` and `dareu stress`."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dareu_jax.cli import options
from dareu_jax.cli.startup import check_disk, prepare_jax, use_cpu
from dareu_jax.config import load_config
from dareu_jax.errors import UserError


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
    against: Annotated[
        str | None, typer.Option(help="transformers: compare the import with it.")
    ] = None,
    python: Annotated[
        str | None, typer.Option(help="Interpreter that has torch (default: this).")
    ] = None,
    source: Annotated[
        Path | None, typer.Option(help="Hugging Face folder (default: as imported).")
    ] = None,
    plugin: options.Plugins = None,
) -> None:
    """Say whether attribution scores of a model on these devices can be trusted.

    With --against transformers: whether its ids, logits, answers and losses are those
    of transformers. The exit status is 1 where a check fails.
    """
    check_against(against, (python, source), (records, kernel))
    prepare_jax()
    if against is not None:
        use_cpu()
    from dareu_jax.audits import doctor as self_test

    if out is not None:
        self_test.check_place(out)
    report: self_test.Report
    if against is not None:
        report = self_test.conformance(model, python or sys.executable, source)
    else:
        report = self_test.examine(model, records, kernel or ("grad_dot",), rows)
    self_test.print_report(Console(), report)
    if out is not None:
        self_test.write(report, out)
    if not report.trusted:
        raise typer.Exit(1)


def check_against(
    against: str | None, its: Iterable[object], others: Iterable[object]
) -> None:
    """Raise `UserError` for options that do not go together."""
    if against not in (None, "transformers"):
        raise UserError(f"--against {against}: there is transformers alone")
    if against is None and any(option is not None for option in its):
        raise UserError("--python and --source go with --against transformers")
    if against is not None and any(option is not None for option in others):
        raise UserError("--records and --kernel do not go with --against")
