"""Membership inference: how well scores tell forget rows from rows never seen."""

import math

import numpy as np

from dareu_jax.evaluation.metrics.metric import declare_each

Array = np.ndarray
EPSILON = 1e-10

declare_each(
    [
        (
            "mia_auc",
            "MIA AUC",
            "closer",
            "How often an attack finds a forget row likelier than a row never seen.",
        )
    ],
    of=("log",),
)
_GAP = "to the retrained model's, in percent of it."
declare_each(
    [
        ("privleak", "PrivLeak %", "closer", f"Gap of 1 - MIA AUC {_GAP}"),
        ("rel_diff", "MIA AUC gap %", "closer", f"Gap of MIA AUC {_GAP}"),
    ],
    of=("pair",),
    low=-100.0,
    high=math.inf,
)


def auc(forget: Array, holdout: Array) -> float:
    """Return ``P(holdout score > forget score)``, ties half: the area under the ROC.

    The U statistic of Mann and Whitney over N M, from ranks: `scipy.stats.mannwhitneyu`
    also computes a p-value, which takes six times as long in a bootstrap.
    Scores are higher for less likely text, the holdout is the positive class: 1 means
    that the forget rows are far more likely than the holdout, 0.5 that scores cannot
    tell. Forget and holdout differ for a retrained model too: compare with its AUC.

    Raises:
      ValueError: no scores, or one that is not finite.
    """
    if not (len(forget) and len(holdout)):
        raise ValueError("an attack needs scores of forget and of holdout rows")
    if not (np.isfinite(forget).all() and np.isfinite(holdout).all()):
        raise ValueError("a score is not finite")
    from scipy.stats import rankdata  # loads for a second, on the first call only

    ranks = rankdata(np.concatenate([forget, holdout]))[len(forget) :]
    return float((ranks.mean() - (len(holdout) + 1) / 2) / len(forget))


def privleak(auc_candidate: float, auc_retrained: float) -> float:
    """Return ``100 (A - A_r) / (A_r + 1e-10)`` with ``A = 1 - auc``, in percent.

    MUSE (Shi et al. 2024, arXiv 2407.06460). 0: like the retrained model; negative:
    the forget rows still look like members; positive: they look less like members
    than rows never seen. Without bound where the retrained model's AUC is near 1.
    """
    candidate, retrained = 1.0 - auc_candidate, 1.0 - auc_retrained
    return 100.0 * (candidate - retrained) / (retrained + EPSILON)


def rel_diff(auc_candidate: float, auc_retrained: float) -> float:
    """Return ``100 (auc - auc_r) / (auc_r + 1e-10)`` in percent; 0: like retrained."""
    return 100.0 * (auc_candidate - auc_retrained) / (auc_retrained + EPSILON)
