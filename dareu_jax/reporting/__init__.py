"""Results for people: tables, printed answers and the HTML report."""

from dareu_jax.reporting.table import print_answers, print_results
