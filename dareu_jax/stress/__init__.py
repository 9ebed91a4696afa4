"""`dareu stress`: tests that try to bring back what a model has unlearned."""

from dareu_jax.stress import hacking as hacking
from dareu_jax.stress import held_out as held_out
from dareu_jax.stress import prefill as prefill
from dareu_jax.stress import prompts as prompts
from dareu_jax.stress import quantise as quantise
from dareu_jax.stress import relearn as relearn
from dareu_jax.stress import sample as sample
from dareu_jax.stress.command import stress
from dareu_jax.stress.table import print_stress

__all__ = ["print_stress", "stress"]
