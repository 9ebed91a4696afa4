"""`dareu evaluate`: a model on a suite of questions, row by row, as a log."""

from dareu_jax.evaluator.command import Asked, evaluated, print_log

__all__ = ["Asked", "evaluated", "print_log"]
