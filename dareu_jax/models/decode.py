"""Answers to prompts, the likeliest or sampled, as tokens and as text."""

from collections.abc import Callable
from typing import Any

import jax

from dareu_jax.data import TokenBatch, Tokenizer
from dareu_jax.errors import UserError
from dareu_jax.models.decoder import Decoder
from dareu_jax.models.sampler import Rollout, Sampling, generate
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
    how, key = Sampling(stop_ids), jax.random.key(0)
    return answering(model, params, how, max_new_tokens, layouts=layouts, key=key)


def answering(
    model: Decoder,
    params: Any,
    how: Sampling,
    max_new_tokens: int,
    *,
    layouts: Layouts,
    key: jax.Array,
) -> Callable[[TokenBatch], Rollout]:
    """Return a function that answers a batch's prompts.

    What a record draws depends on ``key`` and its number alone, in whatever batch it
    is.
    """
    there, key = layouts.params(params), layouts.key(key)

    def answer(batch: TokenBatch) -> Rollout:
        prompt, mask, numbers = layouts.rows(
            (batch.prompt, batch.prompt_mask, batch.index)
        )
        with layouts.sampling():
            said = generate(
                model,
                there,
                prompt,
                mask,
                max_new_tokens=max_new_tokens,
                temperature=how.temperature,
                stop_ids=how.stop_ids,
                key=key,
                top_k=how.top_k,
                top_p=how.top_p,
                numbers=numbers,
            )
        return layouts.back(said)

    return answer


def check_sampling(how: Sampling) -> None:
    """Raise `UserError` where tokens cannot be chosen so."""
    if how.temperature < 0.0:
        raise UserError(f"temperature = {how.temperature} must be 0 or more")
    if how.top_k < 0:
        raise UserError(f"top_k = {how.top_k} must be 0 (all tokens) or more")
    if not 0.0 < how.top_p <= 1.0:
        raise UserError(f"top_p = {how.top_p} must be above 0 and at most 1")


def texts_of(tokenizer: Tokenizer, rollout: Rollout) -> list[str]:
    """Return the answers as text, without white space around them."""
    rows = zip(rollout.tokens, rollout.mask, strict=True)
    return [tokenizer.decode(row[keep].tolist()).strip() for row, keep in rows]
