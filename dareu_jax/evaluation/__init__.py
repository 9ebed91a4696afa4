"""Metrics, and the evaluation that computes them for every model of a run."""

from dareu_jax.evaluation import attribution as attribution
from dareu_jax.evaluation import forget_quality as forget_quality
from dareu_jax.evaluation import memorisation as memorisation
from dareu_jax.evaluation import mia as mia
from dareu_jax.evaluation import probability as probability
from dareu_jax.evaluation import rouge as rouge
from dareu_jax.evaluation import text_quality as text_quality
from dareu_jax.evaluation import truth_ratio as truth_ratio
from dareu_jax.evaluation import utility as utility
from dareu_jax.evaluation.tow import SPLITS, tow

__all__ = ["SPLITS", "tow"]
