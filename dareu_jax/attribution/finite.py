"""Refuse scores that are no numbers, and say of which kernel, owner and record."""

from collections.abc import Sequence

import numpy as np

from dareu_jax.errors import UserError


def check_scores(
    kernel: str, scores: np.ndarray, rows: Sequence[str], owners: Sequence[str]
) -> None:
    """Raise `UserError` where a score is NaN or infinite.

    Args:
      scores: ``[N, O]``; rows: N words that name what is scored, such as
        ``record 'line-3'``; owners: O names.
    """
    bad = np.argwhere(~np.isfinite(scores))
    if not len(bad):
        return
    row, column = bad[0]
    raise UserError(
        f"kernel {kernel}: the score of {rows[row]} for owner {owners[column]!r} is "
        f"{scores[row, column]}, {len(bad)} of {scores.size} scores are not finite; "
        "look for a division by zero or a logarithm of zero, take another kernel, or "
        "let dareu doctor MODEL look for the cause"
    )
