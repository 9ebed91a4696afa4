"""`dareu stress`: tests that try to bring back what a model has unlearned."""

from dareu_jax.audits.stress import hacking as hacking
from dareu_jax.audits.stress import held_out as held_out
from dareu_jax.audits.stress import prefill as prefill
from dareu_jax.audits.stress import prompts as prompts
from dareu_jax.audits.stress import quantise as quantise
from dareu_jax.audits.stress import relearn as relearn
from dareu_jax.audits.stress import sample as sample
from dareu_jax.audits.stress.attempt import stress
from dareu_jax.audits.stress.table import print_stress
