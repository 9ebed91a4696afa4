"""Probability of the gold answers."""

import functools
from typing import TYPE_CHECKING

import numpy as np

from dareu_jax.evaluation.metrics.metric import SPLIT_DIRECTIONS, Metric, declare

if TYPE_CHECKING:
    from dareu_jax.evaluation.run_suite import Judged


def probabilities(judged: "Judged", split: str) -> list[float] | None:
    """Return ``exp(1/T sum_t log p(y_t))`` of each gold answer of a split."""
    logps = judged.gold_logps.get(split)
    return None if logps is None else np.exp(logps).tolist()


_IN_SHORT = {"forget": "probability of the gold answers to forget prompts"}
for _split, _direction in SPLIT_DIRECTIONS.items():
    declare(
        Metric(
            name=f"{_split}_probability",
            label=f"{_split} prob",
            direction=_direction,
            about="Mean length-normalised probability of the gold answer on the "
            f"{_split} prompts.",
            of=("run", "log"),
            compute=functools.partial(probabilities, split=_split),
            group="probability",
            in_short=_IN_SHORT.get(_split, ""),
        )
    )
