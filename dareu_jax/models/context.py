"""Warn of texts that are longer than a model was made for."""

import warnings
from collections.abc import Iterable

from dareu_jax.data import TokenBatch
from dareu_jax.errors import Caution
from dareu_jax.parallel import is_first


def warn_beyond(
    context: int | None, lengths: Iterable[int], what: str = "texts"
) -> None:
    """Warn once how many texts have more tokens than a model's context.

    Args:
      context: tokens that the model was made for; None: unknown, so no warning.
      lengths: tokens of every text, prompt and response together.
      what: the texts in a word.
    """
    if context is None or not is_first():
        return
    every = [int(length) for length in lengths]
    beyond = [length for length in every if length > context]
    if beyond:
        warnings.warn(
            f"{len(beyond)} of {len(every)} {what} are longer than the {context} "
            f"tokens that the model was made for, the longest has {max(beyond)}; "
            "scores and answers beyond mean little: shorten them, or take a model "
            "with a longer context",
            Caution,
            stacklevel=1,
        )


def lengths_of(tokens: TokenBatch) -> list[int]:
    """Return the tokens of every text of a batch, ``[B]``."""
    return (tokens.prompt_mask.sum(axis=1) + tokens.response_mask.sum(axis=1)).tolist()
