"""ROUGE-L recall and F1 of greedy answers against the gold answers."""

import functools
from collections.abc import Sequence
from typing import Any

from dareu_jax.evaluation.metric import Metric, declare

_RECALL = "ROUGE-L recall of the greedy answer against the gold answer"
FORGET_ROUGE = declare(
    Metric(
        *("forget_rouge", "forget ROUGE", "closer", 0.0, 1.0),
        about=f"Mean {_RECALL} on the forget prompts.",
    )
)
RETAIN_ROUGE = declare(
    Metric(
        *("retain_rouge", "retain ROUGE", "higher", 0.0, 1.0),
        about=f"Mean {_RECALL} on the retain prompts.",
    )
)
TEST_ROUGE = declare(
    Metric(
        *("test_rouge", "test ROUGE", "higher", 0.0, 1.0),
        about=f"Mean {_RECALL} on the test prompts.",
    )
)


def rouge_l_recall(
    predictions: Sequence[str], references: Sequence[str]
) -> list[float]:
    """Returns ``LCS(prediction, reference) / |reference|`` per pair, in words.

    Lin 2004, with Porter stemming, as in TOFU (Maini et al. 2024). A reference
    without words scores 0.

    Raises:
      ValueError: when there are not as many predictions as references.
    """
    return [float(score.recall) for score in _rouge_l(predictions, references)]


def rouge_l_f1(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """Returns ``2 P R / (P + R)`` per pair, of precision and recall of the LCS.

    Lin 2004, with Porter stemming; 0 where either side has no words.

    Raises:
      ValueError: when there are not as many predictions as references.
    """
    return [float(score.fmeasure) for score in _rouge_l(predictions, references)]


def _rouge_l(predictions: Sequence[str], references: Sequence[str]) -> list[Any]:
    """Returns precision, recall and fmeasure of every pair."""
    if len(predictions) != len(references):
        raise ValueError(
            f"{len(predictions)} predictions for {len(references)} references"
        )
    score = _scorer().score
    return [
        score(reference, prediction)["rougeL"]
        for prediction, reference in zip(predictions, references, strict=True)
    ]


@functools.cache
def _scorer() -> Any:
    """Returns the one scorer; rouge_score (and nltk) load on the first call only."""
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)
