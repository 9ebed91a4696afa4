"""`dareu score-logs`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dareu_jax.cli import options
from dareu_jax.errors import UserError


def score_logs(
    candidate: Annotated[Path, typer.Argument(help="Log of an evaluation, JSON.")],
    reference: Annotated[
        Path | None, typer.Option(help="Log of the model retrained without the data.")
    ] = None,
    retrained_again: Annotated[
        Path | None, typer.Option(help="Of another seed: what can be expected.")
    ] = None,
    truth_ratio: Annotated[
        str | None, typer.Option(help="geometric (the default), arithmetic, share.")
    ] = None,
    partial: options.Partial = False,
    check_rouge: Annotated[
        bool, typer.Option("--check-rouge", help="From the answers, row by row.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    plots: Annotated[Path | None, typer.Option(help="FILE.png for the curves.")] = None,
) -> None:
    """Compute every aggregate of an evaluation again from its rows; no model.

    Logs of open-unlearning (*_EVAL.json), of locuslab/tofu (eval_log*.json and
    eval_log_aggregated.json), and owners.json of a run.
    """
    from dareu_jax.evaluation.logs.files import score_files
    from dareu_jax.reporting.scores import print_json, print_scores

    how = (truth_ratio, partial, check_rouge, retrained_again, as_json)
    found = score_files(candidate, reference, *how)
    if plots is not None:
        from dareu_jax.reporting.log_plots import check_png, plot_files
        from dareu_jax.storage.files import write_whole

        check_png(plots)
        drawn = plot_files(candidate, reference, truth_ratio, partial)
        if drawn is None:
            raise UserError(f"--plots: {candidate} has no rows of anything to draw")
        write_whole(plots, drawn)
    show = print_json if as_json else print_scores
    show(Console(), found)
