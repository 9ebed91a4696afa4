"""Tug-of-War: how much an unlearned model behaves like the retrained one."""

import math
from collections.abc import Mapping, Sequence

from dareu_jax.evaluation.metric import Metric, declare

SPLITS = ("forget", "retain", "test")
TUGS = {
    "tow": ("forget", SPLITS),
    "tow_star": ("forget", SPLITS[:2]),
    "tow_mia": ("min_k", SPLITS),
    "tow_para": ("forget_paraphrased", SPLITS),
}
"""What stands for the forget set, and the splits; ``a`` is ROUGE-L recall.

ToW-MIA has the AUC of the min-k attack in its place (Zhao et al. 2024), ToW-para the
same questions in other words.
"""

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
_LIKE = "Tug-of-War with the retrained model, 1 = like it: ROUGE-L recall on"
TOW = declare(
    Metric(
        *("tow", "Tug-of-War, ROUGE-L recall", "higher", 0.0, 1.0),
        about=f"{_LIKE} forget, retain and test rows.",
        of=("pair",),
    )
)
TOW_STAR = declare(
    Metric(
        *("tow_star", "Tug-of-War without a test set", "higher", 0.0, 1.0),
        about=f"{_LIKE} forget and retain rows.",
        of=("pair",),
    )
)
TOW_MIA = declare(
    Metric(
        *("tow_mia", "Tug-of-War, min-k AUC of forget", "higher", 0.0, 1.0),
        about=f"{_LIKE} retain and test rows, the min-k attack's AUC on forget rows.",
        of=("pair",),
    )
)
TOW_PARA = declare(
    Metric(
        *("tow_para", "Tug-of-War, forget paraphrased", "higher", 0.0, 1.0),
        about=f"{_LIKE} forget questions in other words, retain and test rows.",
        of=("pair",),
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
