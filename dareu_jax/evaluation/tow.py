"""Tug-of-War: how much an unlearned model behaves like the retrained one."""

import math
from collections.abc import Mapping, Sequence

from dareu_jax.evaluation.metric import Metric, declare

SPLITS = ("forget", "retain", "test")

TOW_ROUGE = declare(
    Metric(
        *("tow_rouge", "ToW ROUGE", "higher", 0.0, 1.0),
        about="Tug-of-War on ROUGE-L recall: 1 = like the retrained model.",
    )
)
TOW_PROBABILITY = declare(
    Metric(
        *("tow_probability", "ToW prob", "higher", 0.0, 1.0),
        about="Tug-of-War on answer probability: 1 = like the retrained model.",
    )
)


def tow(
    unlearned: Mapping[str, float],
    retrained: Mapping[str, float],
    splits: Sequence[str] = SPLITS,
) -> float:
    """Returns ``prod_S (1 - |a(u, S) - a(r, S)|)`` over forget, retain and test.

    Zhao et al. 2024 (arXiv 2406.01257), with any score ``a`` in [0, 1] in the place
    of accuracy. Without the test split it is ToW*. Both models must come from the same
    seed; average over seeds after.

    Raises:
      ValueError: when a split is missing or a score lies outside [0, 1].
    """
    gaps = (
        abs(
            _score(unlearned, split, "unlearned")
            - _score(retrained, split, "retrained")
        )
        for split in splits
    )
    return math.prod(1.0 - gap for gap in gaps)


def _score(scores: Mapping[str, float], split: str, model: str) -> float:
    if split not in scores:
        raise ValueError(f"the {model} model has no {split} score: {sorted(scores)}")
    if not 0.0 <= scores[split] <= 1.0:
        raise ValueError(
            f"the {model} model's {split} score {scores[split]} is outside [0, 1]"
        )
    return float(scores[split])
