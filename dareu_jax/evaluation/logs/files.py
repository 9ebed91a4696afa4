"""Scores of the files of logs."""

from pathlib import Path
from typing import Any

from dareu_jax.errors import UserError
from dareu_jax.evaluation.logs import scores
from dareu_jax.evaluation.logs.intervals import intervals
from dareu_jax.evaluation.logs.reading import read_log


def score_files(
    candidate: Path,
    reference: Path | None = None,
    truth_ratio: str | None = None,
    partial: bool = False,
    rouge: bool = False,
    again: Path | None = None,
    whole: bool = False,
) -> scores.Scores:
    """Return the scores of a log's file, and those of the reference beside it.

    Args:
      rouge: compute ROUGE of every answer again, `check_rouge`.
      again: log of a model retrained as the reference was, from another seed.
      whole: draw the reference's intervals too, which no table shows.

    Returns:
      `score` of the candidate, with ``candidate`` its path, ``intervals`` of its
      scores, ``rouge_checked`` the number of answers (None: not asked for),
      ``retrained_again`` the path and `quality_of_retrainings` (None without one),
      and ``reference`` the same of the reference, or None.

    Raises:
      UserError: ``again`` without a reference; see `read_log` and `score` too.
    """
    if again is not None and reference is None:
        raise UserError(f"--retrained-again {again} needs --reference, the first one")
    kind = scores.truth_ratio_named(truth_ratio or "geometric")
    paths = [candidate] if reference is None else [candidate, reference]
    logs = [read_log(path, partial) for path in paths]
    against = None if reference is None else logs[-1]
    found = []
    for log in logs:
        drawn = whole or log is logs[0]
        facts: dict[str, Any] = {
            "candidate": str(log.path),
            "rouge_checked": scores.check_rouge(log) if rouge else None,
        }
        own = scores.score(log, against, truth_ratio, partial)
        facts["intervals"] = intervals(log, against, kind) if drawn else None
        found.append(
            facts | own | dict.fromkeys(("retrained_again", *scores.RETRAININGS))
        )
    if again is not None and against is not None:
        other = read_log(again, partial)
        found[0]["retrained_again"] = str(again)
        found[0] |= scores.quality_of_retrainings(against, other, kind)
    return found[0] | {"reference": None if against is None else found[1]}
