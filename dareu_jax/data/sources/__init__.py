"""Where corpora come from: one file per source, registered by name."""

from dareu_jax.data.sources import arxiv as arxiv
from dareu_jax.data.sources import jsonl as jsonl
from dareu_jax.data.sources import tofu as tofu
from dareu_jax.data.sources import waterdrum as waterdrum
from dareu_jax.data.sources.fictitious import source as source
