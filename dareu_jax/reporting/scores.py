"""The scores of a log as a table, with the retrained model's beside them."""

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from dareu_jax.evaluation.logs import EvalLog
from dareu_jax.evaluation.score_logs import score_log

Scores = dict[str, Any]
NAMES = {
    "n_forget": "forget rows",
    "forget_quality": "forget quality (KS p)",
    "log10_forget_quality": "log10 of it",
    "ks_statistic": "KS distance",
    "forget_truth_ratio": "forget truth ratio",
    "forget_probability": "forget probability",
    "forget_rouge": "forget ROUGE-L recall",
    "model_utility": "model utility",
    "tow": "ToW",
    "tow_star": "ToW* (forget, retain)",
}
GROUPS = {"mia_auc": "AUC", "privleak": "PrivLeak, %", "model_utility_terms": "term"}


def print_scores(
    console: Console,
    log: EvalLog,
    retrained: EvalLog | None,
    truth_ratio: str = "geometric",
) -> None:
    """Prints every score of a log, and beside it the retrained model's.

    Raises:
      UserError: as `score_log`.
    """
    scores = score_log(log, retrained, truth_ratio)
    reference = None if retrained is None else score_log(retrained, None, truth_ratio)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column(f"{log.path.name} ({log.format})", overflow="fold", min_width=24)
    table.add_column("", justify="right", no_wrap=True)
    if reference is not None:
        table.add_column("retrained", justify="right", no_wrap=True)
    for label, key, group in rows_of(scores):
        cells = [cell(scores, key, group)]
        if reference is not None:
            cells.append(cell(reference, key, group))
        table.add_row(label, *cells)
    console.print(table)
    console.print(f"\ntruth ratio: {scores['truth_ratio']}", style="dim")
    if reference is None:
        console.print(
            "forget quality, ToW and PrivLeak need --reference, the log of a model "
            "retrained without the forget rows",
            style="dim",
        )
    elif scores.get("at_floor"):
        console.print(
            "the truth ratios do not overlap with the retrained model's at all: "
            "forget quality can be no lower with so many rows",
            style="dim",
        )


def rows_of(scores: Scores) -> Iterator[tuple[str, str, str | None]]:
    """Label, key and group of every score that is there."""
    for key, label in NAMES.items():
        if key in scores:
            yield label, key, None
    for group, label in GROUPS.items():
        for key in scores.get(group, {}):
            yield f"{label} {key}", key, group


def cell(scores: Scores, key: str, group: str | None) -> str:
    """One number in few letters; empty where it is not there."""
    value = (scores if group is None else scores.get(group, {})).get(key)
    if value is None:
        return ""
    if isinstance(value, int):
        return str(value)
    return f"{value:.3g}" if 0 < abs(value) < 1e-3 else f"{value:.4f}"
