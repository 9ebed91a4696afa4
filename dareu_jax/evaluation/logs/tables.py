"""Rows of an evaluation as open-unlearning writes them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dareu_jax.evaluation.metrics.mia import auc

Table = dict[str, Any]
"""``{"agg_value": number, "value_by_index": {row: {field: value}}}``."""


def by_index(agg_value: float, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return rows under their numbers."""
    numbered = {str(n): dict(row) for n, row in enumerate(rows)}
    return {"agg_value": float(agg_value), "value_by_index": numbered}


def probabilities(losses: np.ndarray) -> Table:
    """Return ``exp(-loss)`` of one answer a row ``[N]``, or of K ``[N, K]``."""
    probs = np.exp(-losses)
    rows = zip(probs.tolist(), losses.tolist(), strict=True)
    return by_index(probs.mean(), [{"prob": p, "avg_loss": x} for p, x in rows])


def values(field: str, numbers: np.ndarray, agg_value: float | None = None) -> Table:
    """Return rows of one number; the aggregate is their mean, or another one."""
    agg_value = float(numbers.mean()) if agg_value is None else agg_value
    return by_index(agg_value, [{field: x} for x in numbers.tolist()])


def rouge_table(
    scores: Sequence[Mapping[str, float]],
    questions: Sequence[str],
    gold: Sequence[str],
    said: Sequence[str],
) -> Table:
    """Return ROUGE of every answer with its texts; the aggregate is ROUGE-L recall."""
    rows = [
        {**score, "input": question, "ground_truth": right, "generation": text}
        for score, question, right, text in zip(
            scores, questions, gold, said, strict=True
        )
    ]
    return by_index(float(np.mean([row["rougeL_recall"] for row in scores])), rows)


def attack_table(sides: Mapping[str, np.ndarray]) -> Table:
    """Return scores of a membership attack by side, with the AUC as aggregate."""
    tables = {name: values("score", numbers) for name, numbers in sides.items()}
    found = auc(sides["forget"], sides["holdout"])
    return {**tables, "auc": found, "agg_value": found}
