"""Greedy answers to prompts, as tokens and as text."""

from collections.abc import Callable
from typing import Any

import jax

from dareu_jax.data import TokenBatch, Tokenizer
from dareu_jax.models.decoder import Decoder
from dareu_jax.models.sampler import Rollout, generate
from dareu_jax.parallel import Layouts


def greedy(
    model: Decoder,
    params: Any,
    stop_ids: tuple[int, ...],
    max_new_tokens: int,
    *,
    layouts: Layouts,
) -> Callable[[TokenBatch], Rollout]:
    """Return a function that decodes a batch's prompts, always the likeliest token."""
    there = layouts.params(params)

    def decode(batch: TokenBatch) -> Rollout:
        with layouts.sampling():
            said = generate(
                model,
                there,
                *layouts.rows((batch.prompt, batch.prompt_mask)),
                max_new_tokens=max_new_tokens,
                temperature=0.0,
                stop_ids=stop_ids,
                key=jax.random.key(0),
            )
        return layouts.back(said)

    return decode


def texts_of(tokenizer: Tokenizer, rollout: Rollout) -> list[str]:
    """Return the answers as text, without white space around them."""
    rows = zip(rollout.tokens, rollout.mask, strict=True)
    return [tokenizer.decode(row[keep].tolist()).strip() for row, keep in rows]
