"""The check of a tokenizer's ids against its `tokenizer.json`."""

from collections.abc import Sequence
from pathlib import Path

from dareu_jax.audits.doctor.checks import Check, below
from dareu_jax.data import Tokenizer
from dareu_jax.data.tokenizer_check import TEXTS, texts_that_differ

SHOWN = 3
"""Texts that a line names."""


def check_tokenizer(tokenizer: Tokenizer, folder: Path) -> Check:
    """The class that a folder declares against its bare ``tokenizer.json``."""
    name, differ = "tokenizer.json", texts_that_differ(tokenizer, folder)
    if differ is None:
        return Check(name, None, 0.0, None, "not run: the folder has none")
    return below(
        name,
        len(differ),
        0,
        f"of {len(TEXTS)} texts have other ids in it{named(differ)}",
        "the ids used here are those of the class that transformers takes for this "
        "folder; find out with which of the two the model was trained",
    )


def named(texts: Sequence[str]) -> str:
    """Such as ``: 'a', 'b' and 3 more``; empty for none."""
    if not texts:
        return ""
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return f": {', '.join(repr(text[:20]) for text in texts[:SHOWN])}{more}"
