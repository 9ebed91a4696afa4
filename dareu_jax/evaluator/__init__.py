"""`dareu evaluate`: a model on a suite of questions, row by row, as a log."""

from dareu_jax.evaluator.command import Asked, evaluated

__all__ = ["Asked", "evaluated"]
