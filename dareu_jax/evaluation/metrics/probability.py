"""Probability of the gold answers."""

import functools
from typing import TYPE_CHECKING

import numpy as np

from dareu_jax.evaluation.metrics.metric import SPLIT_DIRECTIONS, declare_each

if TYPE_CHECKING:
    from dareu_jax.evaluation.run_suite import Judged


def probabilities(judged: "Judged", split: str) -> list[float] | None:
    """Return ``exp(1/T sum_t log p(y_t))`` of each gold answer of a split."""
    logps = judged.gold_logps.get(split)
    return None if logps is None else np.exp(logps).tolist()


_MEAN = "Mean length-normalised probability of the gold answer on the"
for _split, _direction in SPLIT_DIRECTIONS.items():
    _about = f"{_MEAN} {_split} prompts."
    _short = "probability of the gold answers to forget prompts"
    declare_each(
        [(f"{_split}_probability", f"{_split} prob", _direction, _about)],
        of=("run", "log"),
        compute=functools.partial(probabilities, split=_split),
        group="probability",
        in_short=_short if _split == "forget" else "",
    )
