"""ROUGE of greedy answers against the gold answers."""

import functools
from collections.abc import Sequence
from typing import Any

from dareu_jax.evaluation.metric import Metric, declare

_RECALL = "ROUGE-L recall of the greedy answer against the gold answer"
FORGET_ROUGE = declare(
    Metric(
        *("forget_rouge", "forget ROUGE", "closer", 0.0, 1.0),
        about=f"Mean {_RECALL} on the forget prompts.",
        of=("run", "log"),
    )
)
RETAIN_ROUGE = declare(
    Metric(
        *("retain_rouge", "retain ROUGE", "higher", 0.0, 1.0),
        about=f"Mean {_RECALL} on the retain prompts.",
        of=("run", "log"),
    )
)
TEST_ROUGE = declare(
    Metric(
        *("test_rouge", "test ROUGE", "higher", 0.0, 1.0),
        about=f"Mean {_RECALL} on the test prompts.",
        of=("run", "log"),
    )
)
FORGET_PARAPHRASED_ROUGE = declare(
    Metric(
        *("forget_paraphrased_rouge", "forget ROUGE, paraphrased", "closer", 0.0, 1.0),
        about=f"Mean {_RECALL} on the forget questions in other words.",
        of=("log",),
    )
)
REAL_AUTHORS_ROUGE = declare(
    Metric(
        *("real_authors_rouge", "real authors ROUGE", "higher", 0.0, 1.0),
        about=f"Mean {_RECALL} on questions about real authors.",
        of=("log",),
    )
)
WORLD_FACTS_ROUGE = declare(
    Metric(
        *("world_facts_rouge", "world facts ROUGE", "higher", 0.0, 1.0),
        about=f"Mean {_RECALL} on questions about the world.",
        of=("log",),
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
    return [row["rougeL_recall"] for row in rouge_scores(predictions, references)]


def rouge_scores(
    predictions: Sequence[str], references: Sequence[str]
) -> list[dict[str, float]]:
    """Returns ROUGE-1 recall, ROUGE-L recall and F1 per pair, by their usual names.

    F1 is ``2 P R / (P + R)`` of precision and recall of the LCS, 0 where either side
    has no words: VerbMem and KnowMem of MUSE (arXiv 2407.06460), whose own code does
    not stem.

    Raises:
      ValueError: when there are not as many predictions as references.
    """
    if len(predictions) != len(references):
        raise ValueError(
            f"{len(predictions)} predictions for {len(references)} references"
        )
    pairs = zip(predictions, references, strict=True)
    found = [_scorer().score(gold, text) for text, gold in pairs]
    return [
        {
            "rouge1_recall": float(one["rouge1"].recall),
            "rougeL_f1": float(one["rougeL"].fmeasure),
            "rougeL_recall": float(one["rougeL"].recall),
        }
        for one in found
    ]


@functools.cache
def _scorer() -> Any:
    """Returns the one scorer; rouge_score (and nltk) load on the first call only."""
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
