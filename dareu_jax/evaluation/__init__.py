"""Metrics, and one evaluation that treats every model alike."""

from dareu_jax.evaluation import metric, rouge, text_quality
from dareu_jax.evaluation.tow import SPLITS, tow

__all__ = ["SPLITS", "metric", "rouge", "text_quality", "tow"]
