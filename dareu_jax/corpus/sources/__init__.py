"""Where corpora come from: one file per source, registered by name."""

from dareu_jax.corpus.sources import fictitious, jsonl, tofu

__all__ = ["fictitious", "jsonl", "tofu"]
