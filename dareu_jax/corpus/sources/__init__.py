"""Where corpora come from: one file per source, registered by name."""

from dareu_jax.corpus.sources import arxiv, fictitious, jsonl, tofu, waterdrum

__all__ = ["arxiv", "fictitious", "jsonl", "tofu", "waterdrum"]
