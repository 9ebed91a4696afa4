"""Where corpora come from: one file per source, registered by name."""

from dareu_jax.data.sources import arxiv, jsonl, tofu, waterdrum
from dareu_jax.data.sources.fictitious import source
