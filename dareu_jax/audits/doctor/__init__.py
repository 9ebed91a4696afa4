"""Can attribution scores of a model on these devices be trusted? A self-test."""

from dareu_jax.audits.doctor.conformance import conformance
from dareu_jax.audits.doctor.examine import examine
from dareu_jax.audits.doctor.functional import examine_gradients
from dareu_jax.audits.doctor.output import Report, check_place, print_report, write
