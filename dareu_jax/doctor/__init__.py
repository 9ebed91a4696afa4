"""Can attribution scores of a model on these devices be trusted? A self-test."""

from dareu_jax.doctor.examine import examine
from dareu_jax.doctor.functional import examine_gradients
from dareu_jax.doctor.output import Report, check_place, print_report, write

__all__ = [
    "Report",
    "check_place",
    "examine",
    "examine_gradients",
    "print_report",
    "write",
]
