"""Truth ratio: how likely wrong answers are beside the right one."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dareu_jax.evaluation.metrics.metric import declare_each

Array = np.ndarray
EPSILON = 1e-10

_EQUAL = (
    "Mean min(R, 1/R) on the forget questions, R = wrong over right answers: 1 where "
    "the model cannot tell them apart."
)
_BETTER = "Mean max(0, 1 - R), R = wrong over right answers, on"
declare_each(
    [
        ("forget_truth_ratio", "forget truth ratio", "closer", _EQUAL),
        *(
            (
                f"{name}_truth_ratio",
                f"{spelt} truth ratio",
                "higher",
                f"{_BETTER} {on}.",
            )
            for name, spelt, on in (
                ("retain", "retain", "the retain questions"),
                ("real_authors", "real authors", "questions about real authors"),
                ("world_facts", "world facts", "questions about the world"),
            )
        ),
    ],
    of=("log",),
)


def geometric(right_loss: Array, wrong_loss: Array) -> Array:
    """Return ``R = exp(-mean_j wrong_j) / (exp(-right) + 1e-10)``, ``[N]``.

    The geometric mean of the wrong answers' probabilities over the right answer's, as
    in open-unlearning and in the logs of TOFU (Maini et al. 2024, arXiv 2401.06121).

    Args:
      right_loss: ``[N]`` nats per token of the (paraphrased) right answer.
      wrong_loss: ``[N, K]`` nats per token of the wrong answers.
    """
    return np.exp(-wrong_loss.mean(axis=1)) / (np.exp(-right_loss) + EPSILON)


def arithmetic(right_loss: Array, wrong_loss: Array) -> Array:
    """Return ``R = mean_j exp(-wrong_j) / (exp(-right) + 1e-10)``, ``[N]``.

    The definition in the text of Maini et al. 2024; arguments as of `geometric`.
    """
    return np.exp(-wrong_loss).mean(axis=1) / (np.exp(-right_loss) + EPSILON)


def share(right_loss: Array, wrong_loss: Array) -> Array:
    """Return ``right / (right + wrong + 1e-10)``, ``[N]``, wrong as in `geometric`.

    Open-unlearning's ``prob_mean``; arguments as of `geometric`.
    """
    right, wrong = np.exp(-right_loss), np.exp(-wrong_loss.mean(axis=1))
    return right / (right + wrong + EPSILON)


def closer_to_one(ratio: Array) -> float:
    """Return ``mean min(R, 1/R)``: 1 where right and wrong are equally likely."""
    return float(np.minimum(ratio, 1.0 / (ratio + EPSILON)).mean())


def true_is_better(ratio: Array) -> float:
    """Return ``mean max(0, 1 - R)``: 1 where only the right answer is likely."""
    return float(np.maximum(0.0, 1.0 - ratio).mean())


def mean(ratio: Array) -> float:
    """Return the mean of ``[N]``."""
    return float(ratio.mean())


class TruthRatio(NamedTuple):
    """One definition: the ratio of every row, its aggregates, and its formula."""

    rows: Callable[[Array, Array], Array]
    forget: Callable[[Array], float]
    others: Callable[[Array], float]
    formula: str


TRUTH_RATIOS = {
    "geometric": TruthRatio(
        rows=geometric,
        forget=closer_to_one,
        others=true_is_better,
        formula="exp(-mean loss of the wrong answers) / probability of the right one",
    ),
    "arithmetic": TruthRatio(
        rows=arithmetic,
        forget=closer_to_one,
        others=true_is_better,
        formula="mean probability of the wrong answers / probability of the right one",
    ),
    "share": TruthRatio(
        rows=share,
        forget=mean,
        others=mean,
        formula="right / (right + wrong), wrong = exp(-mean loss of the wrong answers)",
    ),
}
