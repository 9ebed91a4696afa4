"""Metrics of an attribution function against retraining, in NumPy.

``scores [Q, O]`` say how much owner o raises the likelihood of query q; ``outcomes``
are mean log-likelihoods per token of the queries under models trained on fewer owners.
"""

import numpy as np
from scipy.stats import rankdata

Array = np.ndarray
FLIP = np.log(2.0)
"""Nats per token that an answer must lose to count as lost."""
BINS = 10


def subsets(owners: int, count: int, share: float, seed: int = 0) -> Array:
    """Return ``[M, O]`` bool: different subsets, each of round(share O) owners."""
    rng, size = np.random.default_rng(seed), round(share * owners)
    found: dict[tuple[int, ...], None] = {}
    for _ in range(100 * count):
        found[tuple(sorted(rng.permutation(owners)[:size]))] = None
        if len(found) == count:
            break
    masks = np.zeros((len(found), owners), bool)
    for row, chosen in enumerate(found):
        masks[row, list(chosen)] = True
    return masks


def correlations(a: Array, b: Array) -> Array:
    """Return Spearman's correlation of every row of ``[N, M]``, ``[N]``; 0 where flat.

    Ties have their mean rank. `scipy.stats.spearmanr` would correlate every row with
    every other one, and `pearsonr` rounds: ranks that agree must give exactly 1.
    """
    a, b = (rankdata(x, axis=1) for x in (a, b))
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (a, b))
    size = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(size > 0.0, (a * b).sum(axis=1) / size, 0.0)


def lds(scores: Array, masks: Array, outcomes: Array) -> Array:
    """Return the LDS ``[Q]``: corr_S(sum_{o in S} s[q, o], outcome[q, S]).

    LDS is the linear datamodelling score.

    Scores enter as differences from the first owner's, which moves the sums of all
    subsets alike: equal scores give sums of exactly 0, without float noise to rank.

    Args:
      scores: ``[Q, O]``; masks: ``[M, O]`` bool, all of one size; outcomes: ``[Q, M]``.

    Raises:
      ValueError: subsets of different sizes, which any positive score would tell apart.

    Source: Park et al. (2023), over owners in place of examples.
    """
    if len(set(masks.sum(axis=1).tolist())) > 1:
        raise ValueError("subsets of owners must have one size")
    above = np.asarray(scores, np.float64) - scores[:, :1]
    return correlations(above @ masks.T.astype(np.float64), outcomes)


def leave_one_out(scores: Array, whole: Array, without: Array) -> Array:
    """Return Spearman over owners of s[q, o] with what leaving o out costs, ``[Q]``.

    Args:
      whole: ``[Q]`` under the model of all owners; without: ``[Q, O]``.
    """
    return correlations(scores, whole[:, None] - without)


def reciprocal_ranks(scores: Array, owner: Array) -> Array:
    """Return 1 / rank of the true owner ``[Q]``, ties at their mean rank."""
    ranks = rankdata(-scores, axis=1)
    return 1.0 / ranks[np.arange(len(owner)), owner]


def top_is_right(scores: Array, owner: Array) -> Array:
    """Return recall at 1, ``[Q]``: a tie of n owners counts 1 / n."""
    best = scores == scores.max(axis=1, keepdims=True)
    return best[np.arange(len(owner)), owner] / best.sum(axis=1)


def calibration_error(probabilities: Array, owner: Array) -> float:
    """Return the ECE: mean gap of the best owner's confidence and accuracy, 10 bins."""
    sure = probabilities.max(axis=1)
    right = top_is_right(probabilities, owner)
    place = np.minimum((sure * BINS).astype(int), BINS - 1)
    gaps = [
        abs(sure[place == b].mean() - right[place == b].mean()) * (place == b).mean()
        for b in range(BINS)
        if (place == b).any()
    ]
    return float(sum(gaps))


def of_the_best(scores: Array, values: Array) -> Array:
    """Return ``values [Q, O]`` at the best owner of each query, ties averaged."""
    best = (scores == scores.max(axis=1, keepdims=True)).astype(np.float64)
    return (best * values).sum(axis=1) / best.sum(axis=1)


def tail_patch(scores: Array, gains: Array) -> Array:
    """Return the gain of a step on the best owner's records, over the owners' mean."""
    return of_the_best(scores, gains) - gains.mean(axis=1)


def brittleness(scores: Array, whole: Array, without: Array) -> Array:
    """Return 1 where leaving the best owner out halves a token's likelihood ``[Q]``."""
    lost = (whole[:, None] - without > FLIP).astype(np.float64)
    return of_the_best(scores, lost)
