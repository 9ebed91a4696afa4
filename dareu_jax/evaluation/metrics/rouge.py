"""ROUGE of greedy answers against the gold answers."""

import functools
import operator
from collections.abc import Sequence
from typing import Any

from dareu_jax.evaluation.metrics.metric import SPLIT_DIRECTIONS, declare_each


def rouge_l_recall(
    predictions: Sequence[str], references: Sequence[str]
) -> list[float]:
    """Return ``LCS(prediction, reference) / |reference|`` per pair, in words.

    Lin 2004, with Porter stemming, as in TOFU (Maini et al. 2024). A reference
    without words scores 0.
    """
    return [row["rougeL_recall"] for row in rouge_scores(predictions, references)]


def rouge_scores(
    predictions: Sequence[str], references: Sequence[str]
) -> list[dict[str, float]]:
    """Return ROUGE-1 recall, ROUGE-L recall and F1 per pair, by their usual names.

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
    """Return the one scorer; rouge_score (and nltk) load on the first call only."""
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rougeL"], use_stemmer=True)


_RECALL = "Mean ROUGE-L recall of the greedy answer against the gold answer on"
for _name, _direction in SPLIT_DIRECTIONS.items():
    _on = f"the {_name} prompts"
    declare_each(
        [(f"{_name}_rouge", f"{_name} ROUGE", _direction, f"{_RECALL} {_on}.")],
        of=("run", "log"),
        compute=operator.methodcaller("of_texts", _name, rouge_l_recall),
        group="rouge",
        in_short="" if _name == "test" else f"ROUGE-L recall on {_on}",
    )
declare_each(
    [
        (
            "forget_paraphrased_rouge",
            "forget ROUGE, paraphrased",
            "closer",
            f"{_RECALL} the forget questions in other words.",
        ),
        *(
            (
                f"{name}_rouge",
                f"{spelt} ROUGE",
                "higher",
                f"{_RECALL} questions about {on}.",
            )
            for name, spelt, on in (
                ("real_authors", "real authors", "real authors"),
                ("world_facts", "world facts", "the world"),
            )
        ),
    ],
    of=("log",),
)
