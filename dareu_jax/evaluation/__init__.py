"""Metrics, and the evaluation that computes them for every model of a run."""

from dareu_jax.evaluation import (
    attribution,
    forget_quality,
    memorisation,
    metric,
    mia,
    probability,
    rouge,
    text_quality,
    truth_ratio,
    utility,
)
from dareu_jax.evaluation.tow import SPLITS, tow

__all__ = [
    "SPLITS",
    "attribution",
    "forget_quality",
    "memorisation",
    "metric",
    "mia",
    "probability",
    "rouge",
    "text_quality",
    "tow",
    "truth_ratio",
    "utility",
]
