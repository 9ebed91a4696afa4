"""Losses of given answers, and a model's own answers."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from dareu_jax import data
from dareu_jax.data.batches import encode
from dareu_jax.data.wording import Wording
from dareu_jax.errors import UserError
from dareu_jax.evaluation.suites.packed import Said, said_tokens
from dareu_jax.models import loaded
from dareu_jax.models.context import lengths_of, warn_beyond
from dareu_jax.models.decode import greedy
from dareu_jax.models.loaded import MULTIPLE, LoadedModel, padded

ROUND = 32
"""Tokens that answers get before those that have not ended are batched anew."""
Pair = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Reading:
    """How text becomes tokens, and how much of it at a time.

    Attributes:
      wording: how a question and its answer become one text.
      batch_size: texts at a time; max_new_tokens: of an answer.
    """

    wording: Wording
    batch_size: int = 16
    max_new_tokens: int = 200


def records_of(pairs: Sequence[Pair]) -> list[data.Record]:
    """Return questions and answers as records of nobody."""
    return [data.Record(str(n), "", *pair) for n, pair in enumerate(pairs)]


def encoded(
    model: LoadedModel, reading: Reading, pairs: Sequence[Pair]
) -> tuple[list[list[int]], list[list[int]]]:
    """Return tokens of questions, and of answers with their end of text.

    The end is all that a chat template writes behind an answer, as in open-unlearning.
    """
    return encode(records_of(pairs), model.tokenizer, reading.wording, whole_turn=True)


def as_tokens(
    model: LoadedModel, reading: Reading, pairs: Sequence[Pair]
) -> data.TokenBatch:
    """Return questions and answers as tokens, every one whole."""
    tokens = loaded.as_tokens(
        model, records_of(pairs), reading.wording, whole_turn=True
    )
    warn_beyond(model.context, lengths_of(tokens))
    return tokens


def by_length(
    model: LoadedModel,
    tokens: data.TokenBatch,
    batch_size: int,
    score: Callable[[data.TokenBatch], Any],
    widths: data.Widths | None = None,
) -> Any:
    """Return ``score`` of batches of like length; rows keep their own order.

    ``widths``: of batches; none: few that leave little empty.
    """
    widths = widths or data.fitted_widths(tokens, model.rows(batch_size))
    return model.over(tokens, batch_size, score, widths)


class Losses(NamedTuple):
    """Of given answers ``[N]``: mean nats per token, end of text included.

    ``lead`` is how many of the first tokens greedy decoding says by itself.
    """

    loss: np.ndarray
    lead: np.ndarray


def said_answers(
    model: LoadedModel, reading: Reading, pairs: Sequence[Pair]
) -> list[Said]:
    """Return log p and hits of every token of given answers, their end included."""
    asked, answers = encoded(model, reading, pairs)
    whole = [len(prompt) + len(own) for prompt, own in zip(asked, answers, strict=True)]
    warn_beyond(model.context, whole)
    return said_tokens(model, asked, answers, reading.batch_size)


def answer_losses(
    model: LoadedModel, reading: Reading, pairs: Sequence[Pair]
) -> Losses:
    """Return `Losses` of given answers."""
    found = said_answers(model, reading, pairs)
    loss = np.asarray([-x.logps.mean(dtype=np.float64) for x in found])
    check_finite(loss, pairs)
    lead = [np.argmin(np.append(x.hits, False)) for x in found]
    return Losses(loss, np.asarray(lead))


def answer_logps(
    model: LoadedModel, reading: Reading, pairs: Sequence[Pair]
) -> np.ndarray:
    """Return log p ``[N]`` of given answers, without the end of text."""
    found = said_answers(model, reading, pairs)
    logps = np.asarray([x.logps[:-1].sum(dtype=np.float64) for x in found])
    check_finite(logps, pairs)
    return logps


def check_finite(values: np.ndarray, pairs: Sequence[Pair]) -> None:
    """Raise `UserError` where a model gives an answer no finite loss."""
    if not np.isfinite(values).all():
        question, answer = pairs[int(np.argmin(np.isfinite(values)))]
        raise UserError(
            f"the loss of {answer!r:.40} to {question!r:.60} is no finite number; the "
            "model is broken (dareu doctor looks for the cause)"
        )


class Guess(NamedTuple):
    """An answer that a model may give: of its ``tokens`` it says the first ``lead``."""

    tokens: list[int]
    lead: int


def guesses(
    model: LoadedModel, reading: Reading, pairs: Sequence[Pair], lead: Sequence[int]
) -> list[Guess]:
    """Return given answers, each with how many of its tokens the model says."""
    _, answers = encoded(model, reading, pairs)
    return [Guess(*one) for one in zip(answers, lead, strict=True)]


def own_answers(
    model: LoadedModel,
    reading: Reading,
    questions: Sequence[str],
    guessed: Sequence[Guess] | None = None,
) -> tuple[list[str], list[bool]]:
    """Return greedy answers, and whether each ended by itself.

    Args:
      model, reading: who answers, and how; questions: N of them.
      guessed: an answer to each. What is known of it is not decoded again, and
        answers of which as much is to come are decoded together.

    ``model.counted`` is told of rows in `rounds_of` rounds each.
    """
    limit, stop_ids = reading.max_new_tokens, model.tokenizer.stop_ids
    prompts, _ = encoded(model, reading, [(text, "") for text in questions])
    warn_beyond(model.context, map(len, prompts), "prompts")
    guessed = guessed or [Guess([], 0) for _ in prompts]
    said = [guess.tokens[: guess.lead][:limit] for guess in guessed]
    model.counted(sum(len(own) // ROUND for own in said))
    decode = greedy(
        model.decoder, model.params, stop_ids, min(limit, ROUND), layouts=model.layouts
    )
    while rest := [
        n
        for n, own in enumerate(said)
        if len(own) < limit and not has_ended(own, stop_ids)
    ]:
        asked = padded(
            model,
            [prompts[n] + said[n] for n in rest],
            [guessed[n].tokens[len(said[n]) :] for n in rest],
        )
        more = by_length(model, asked, reading.batch_size, decode, prompts_of(asked))
        for n, tokens, mask in zip(rest, more.tokens, more.mask, strict=True):
            said[n] = (said[n] + tokens[mask].tolist())[:limit]
            if has_ended(said[n], stop_ids):
                model.counted((limit - len(said[n])) // ROUND)
    texts = [model.tokenizer.decode(own).strip() for own in said]
    return texts, [has_ended(own, stop_ids) for own in said]


def prompts_of(asked: data.TokenBatch) -> data.Widths:
    """Return the multiples of `MULTIPLE` that prompts may have, as answers grow."""
    (_, longest), width = asked.prompt.shape, asked.response.shape[1]
    return tuple((p, width) for p in range(MULTIPLE, longest + 1, MULTIPLE))


def rounds_of(limit: int) -> int:
    """Return in how many rounds of `ROUND` tokens an answer gets to its limit."""
    return -(-limit // ROUND)


def has_ended(tokens: Sequence[int], stop_ids: tuple[int, ...]) -> bool:
    """Return whether an answer ends with a stop token."""
    return bool(tokens) and tokens[-1] in stop_ids
