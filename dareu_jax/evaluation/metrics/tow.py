"""Tug-of-War: how much an unlearned model behaves like the retrained one."""

import math
from collections.abc import Mapping, Sequence

from dareu_jax.evaluation.metrics.metric import declare_each

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

_LIKE = "1 = like the retrained model."
for _group, _label, _about, _in_short in (
    (
        "rouge",
        "ToW ROUGE",
        "ROUGE-L recall",
        "Tug-of-War on ROUGE (1 = like retrained)",
    ),
    ("probability", "ToW prob", "answer probability", ""),
):
    declare_each(
        [(f"tow_{_group}", _label, "higher", f"Tug-of-War on {_about}: {_LIKE}")],
        of=("beside",),
        group=_group,
        in_short=_in_short,
    )
_WITH = "Tug-of-War with the retrained model, 1 = like it: ROUGE-L recall on"
_MIA = "retain and test rows, the min-k attack's AUC on forget rows"
_PARA = "forget questions in other words, retain and test rows"
declare_each(
    (
        (_name, f"Tug-of-War{_label}", "higher", f"{_WITH} {_about}.")
        for _name, _label, _about in (
            ("tow", ", ROUGE-L recall", "forget, retain and test rows"),
            ("tow_star", " without a test set", "forget and retain rows"),
            ("tow_mia", ", min-k AUC of forget", _MIA),
            ("tow_para", ", forget paraphrased", _PARA),
        )
    ),
    of=("pair",),
)


def tow(
    unlearned: Mapping[str, float],
    retrained: Mapping[str, float],
    splits: Sequence[str] = SPLITS,
) -> float:
    """Return ``prod_S (1 - |a(u, S) - a(r, S)|)`` over forget, retain and test.

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
