"""The check of a tokenizer's ids against those of transformers."""

from collections.abc import Sequence

from dareu_jax.audits.doctor.checks import Check, below
from dareu_jax.data import Tokenizer
from dareu_jax.data.tokenizer_check import TEXTS

SHOWN = 3
"""Texts that a line names."""


def check_tokenizer(tokenizer: Tokenizer) -> Check:
    """The class that transformers takes for a folder against its tokenizer.json."""
    differ = tokenizer.differ
    return below(
        "tokenizer.json",
        len(differ),
        0,
        f"of {len(TEXTS)} texts have other ids in transformers{named(differ)}",
        "the ids used here are those of tokenizer.json; set tokenizer_class to "
        "TokenizersBackend in tokenizer_config.json where transformers must have them "
        "too",
    )


def named(texts: Sequence[str]) -> str:
    """Such as ``: 'a', 'b' and 3 more``; empty for none."""
    if not texts:
        return ""
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return f": {', '.join(repr(text[:20]) for text in texts[:SHOWN])}{more}"
