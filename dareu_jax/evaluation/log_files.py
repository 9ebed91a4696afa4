"""Files of logs in, their scores out."""

from pathlib import Path

from dareu_jax.evaluation.log_intervals import intervals
from dareu_jax.evaluation.log_scores import (
    Scores,
    check_rouge,
    score,
    truth_ratio_named,
)
from dareu_jax.evaluation.logs import read_log


def score_files(
    candidate: Path,
    reference: Path | None = None,
    truth_ratio: str | None = None,
    partial: bool = False,
    rouge: bool = False,
) -> Scores:
    """Scores the log of a file, and the reference's against itself beside it.

    Args:
      candidate, reference, truth_ratio, partial: as of `score`.
      rouge: compute ROUGE of every answer again, `check_rouge`.

    Returns:
      `score` of the candidate, with ``candidate`` its path, ``intervals`` of its
      scores, ``rouge_checked`` the number of answers (None: not asked for), and
      ``reference`` the same of the reference, or None.

    Raises:
      UserError: see `read_log` and `score`.
    """
    kind = truth_ratio_named(truth_ratio or "geometric")
    paths = [candidate] if reference is None else [candidate, reference]
    logs = [read_log(path, partial) for path in paths]
    against = None if reference is None else logs[-1]
    found = []
    for log in logs:
        checked = check_rouge(log) if rouge else None
        scores = score(log, against, truth_ratio, partial)
        facts = {
            "candidate": str(log.path),
            "rouge_checked": checked,
            "intervals": intervals(log, against, kind),
        }
        found.append(facts | scores)
    return found[0] | {"reference": None if against is None else found[1]}
