"""What a model says of questions: losses of given answers, answers of its own."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dareu_jax import corpus as owned
from dareu_jax.attributor.model import Model
from dareu_jax.corpus.batches import take, trim_prompts, trim_responses
from dareu_jax.errors import UserError
from dareu_jax.evaluation.evaluate import greedy, mean_logp, texts_of
from dareu_jax.models import Decoder, response_logps
from dareu_jax.parallel import on_host

MULTIPLE = 32
"""Of the tokens of prompts and of responses: few lengths, few compilations."""
NARROW = 16
"""Of those in one batch of like lengths."""
Pair = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Reading:
    """How text becomes tokens, and how much of it at a time.

    Attributes:
      template: what a question is written into, see `corpus.tokenise`.
      system: before the question, where the template is ``chat``.
      batch_size: texts at a time; max_new_tokens: of an answer.
    """

    template: str
    system: str | None = None
    batch_size: int = 16
    max_new_tokens: int = 200


def as_tokens(
    model: Model, reading: Reading, pairs: Sequence[Pair]
) -> owned.TokenBatch:
    """Questions and answers as tokens, every one whole."""
    records = [owned.Record(str(n), "", *pair) for n, pair in enumerate(pairs)]
    how = (model.tokenizer, reading.template)
    p, t = owned.fit_lengths(records, *how, MULTIPLE, system=reading.system)
    return owned.tokenise(
        records, *how, max_prompt=p, max_response=t, system=reading.system
    )


def by_length(
    model: Model,
    tokens: owned.TokenBatch,
    batch_size: int,
    score: Callable[[owned.TokenBatch], Any],
    whole_text: bool = True,
) -> Any:
    """``score`` of batches of like length, trimmed to fit; rows in their own order.

    Args:
      model: places a batch; tokens: N rows; batch_size: rounded up to the devices.
      score: ``batch -> arrays [B, ...]``; whole_text: it reads responses too.
    """
    size, count = model.rows(batch_size), len(tokens.index)
    prompt, response = tokens.prompt_mask.sum(1), tokens.response_mask.sum(1)
    order = np.lexsort((whole_text * response, -(-prompt // NARROW)))
    parts = []
    with jax.set_mesh(model.mesh):
        for start in range(0, count, size):
            rows = order[np.arange(start, start + size) % count]
            batch = trim_prompts(take(tokens, rows), NARROW)
            batch = trim_responses(batch, NARROW)
            parts.append(on_host(score(model.place(batch))))
    back = np.argsort(order)
    return jax.tree.map(lambda *xs: np.concatenate(xs)[:count][back], *parts)


def answer_losses(model: Model, reading: Reading, pairs: Sequence[Pair]) -> np.ndarray:
    """Mean nats per token ``[N]`` of given answers, end of text included.

    Raises:
      UserError: a loss is no finite number; the answer is named.
    """
    score = functools.partial(mean_logp, model.decoder, model.params)
    tokens = as_tokens(model, reading, pairs)
    losses = -np.asarray(by_length(model, tokens, reading.batch_size, score))
    check_finite(losses, pairs)
    return losses.astype(np.float64)


def answer_logps(model: Model, reading: Reading, pairs: Sequence[Pair]) -> np.ndarray:
    """log p ``[N]`` of given answers, without the end of text.

    Raises:
      UserError: one is no number.
    """
    score = functools.partial(total_logp, model.decoder, model.params)
    tokens = as_tokens(model, reading, pairs)
    logps = np.asarray(by_length(model, tokens, reading.batch_size, score))
    check_finite(logps, pairs)
    return logps.astype(np.float64)


@functools.partial(jax.jit, static_argnames="model")
def total_logp(model: Decoder, params: Any, batch: owned.TokenBatch) -> jax.Array:
    """sum_t log p(a_t | q, a_<t) ``[B]``, the last token left out."""
    logps, mask = response_logps(model, params, batch), batch.response_mask
    last = jnp.sum(mask.astype(jnp.int32), axis=1, keepdims=True) - 1
    place = jnp.arange(mask.shape[1], dtype=jnp.int32)[None]
    return jnp.sum(jnp.where(place < last, logps, 0.0), axis=1)


def check_finite(values: np.ndarray, pairs: Sequence[Pair]) -> None:
    """Raises `UserError` where a model cannot say how likely an answer is."""
    if not np.isfinite(values).all():
        question, answer = pairs[int(np.argmin(np.isfinite(values)))]
        raise UserError(
            f"the loss of {answer!r:.40} to {question!r:.60} is no finite number; the "
            "model is broken (dareu doctor looks for the cause)"
        )


def own_answers(
    model: Model, reading: Reading, questions: Sequence[str]
) -> tuple[list[str], list[bool]]:
    """Greedy answers, and whether each ended by itself."""
    tokens = as_tokens(model, reading, [(text, ".") for text in questions])
    stop_ids = model.tokenizer.stop_ids
    decode = greedy(
        *(model.decoder, model.params, stop_ids, reading.max_new_tokens, model.layouts)
    )
    size = reading.batch_size
    said = by_length(model, tokens, size, decode, whole_text=False)
    ends = (said.mask & np.isin(said.tokens, stop_ids)).any(axis=1)
    return texts_of(model.tokenizer, said), ends.tolist()
