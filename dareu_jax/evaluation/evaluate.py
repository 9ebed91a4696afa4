"""Judges one model on the forget, retain and test records, all models alike."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dareu_jax.attribution import Kernel
from dareu_jax.corpus import TokenBatch, Tokenizer, sequential
from dareu_jax.evaluation.metric import aggregate
from dareu_jax.evaluation.rouge import rouge_l_recall
from dareu_jax.evaluation.text_quality import text_quality
from dareu_jax.generation import Rollout, generate
from dareu_jax.models import Decoder, response_logps
from dareu_jax.parallel import Layouts, Preemption, on_host, shared_out

Array = jax.Array
Logs = dict[str, dict[str, Any]]


class Answers(NamedTuple):
    """Greedy answers to N prompts: ``[N, T]`` tokens and mask, decoded text."""

    tokens: np.ndarray
    mask: np.ndarray
    text: list[str]
    finished: list[bool]


@dataclasses.dataclass(frozen=True)
class Suite:
    """What every model is judged on and by.

    Attributes:
      model: the decoder; tokenizer: for decoding.
      tokens: gold records per split, ``forget``, ``retain``, ``test``.
      gold: the gold answers as text, per split.
      judges: metric name -> ``(kernel, index)``.
      forget_columns: columns of the forget owners in the judges' scores.
      retrained: parameters of the retrained model, or None.
      reference: parameters of the original, for kernels that need them.
      batch_size, max_new_tokens: of the greedy decoding.
      place: puts a numpy batch on the devices; layouts: where answers are decoded.
      preemption: whether the machine is being taken away; asked before every batch.
    """

    model: Decoder
    tokenizer: Tokenizer
    tokens: dict[str, TokenBatch]
    gold: dict[str, list[str]]
    judges: dict[str, tuple[Kernel, Any]]
    forget_columns: tuple[int, ...]
    retrained: Any
    reference: Any
    batch_size: int
    max_new_tokens: int
    place: Callable[[Any], Any]
    layouts: Layouts = dataclasses.field(default_factory=Layouts)
    preemption: Preemption = dataclasses.field(default_factory=Preemption)


def in_batches(suite: Suite, tokens: TokenBatch, score: Callable) -> Any:
    """Apply ``score`` to batches of fixed shape; concatenate over the N records.

    Raises:
      Preempted: the machine is being taken away.
    """

    def checked(batch: TokenBatch) -> Any:
        suite.preemption.check("what was finished is saved")
        return score(batch)

    return over_records(tokens, suite.batch_size, suite.place, checked)


def over_records(
    tokens: TokenBatch, batch_size: int, place: Callable[[Any], Any], score: Callable
) -> Any:
    """`in_batches` of ``batch_size`` rows that ``place`` puts on the devices."""
    parts = []
    for batch, valid in sequential(tokens, batch_size):
        values = on_host(score(place(batch)))
        parts.append(jax.tree.map(lambda x, n=valid: x[:n], values))
    return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)


def greedy(
    model: Decoder,
    params: Any,
    stop_ids: tuple[int, ...],
    max_new_tokens: int,
    layouts: Layouts,
) -> Callable[[TokenBatch], Rollout]:
    """Decoding of a batch's prompts, each token the likeliest."""
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
    """The answers in words, without white space around them."""
    rows = zip(rollout.tokens, rollout.mask, strict=True)
    return [tokenizer.decode(row[keep].tolist()).strip() for row, keep in rows]


def answer(suite: Suite, params: Any, tokens: TokenBatch) -> Answers:
    """Decodes greedily from every prompt."""
    stop_ids = suite.tokenizer.stop_ids
    limit, layouts = suite.max_new_tokens, suite.layouts
    decode = greedy(suite.model, params, stop_ids, limit, layouts)
    rollout = in_batches(suite, tokens, decode)
    ends = rollout.mask & np.isin(rollout.tokens, suite.tokenizer.stop_ids)
    text = texts_of(suite.tokenizer, rollout)
    return Answers(rollout.tokens, rollout.mask, text, ends.any(axis=1).tolist())


@functools.partial(jax.jit, static_argnames="model")
def mean_logp(model: Decoder, params: Any, batch: TokenBatch) -> Array:
    """1/|a| sum_t log p(a_t | q, a_<t) ``[B]``, end of text included."""
    logps = response_logps(model, params, batch)
    count = jnp.sum(batch.response_mask.astype(jnp.float32), axis=1)
    return jnp.sum(logps, axis=1) / jnp.maximum(count, 1.0)


@functools.partial(jax.jit, static_argnames=("kernel", "columns"))
def owners_score(
    kernel: Kernel, columns: tuple[int, ...], reference, index, batch: TokenBatch
) -> Array:
    """Attribution of whole responses to the owners of ``columns``, summed, ``[B]``."""
    scores = kernel.score(reference, index, batch)
    return jnp.sum(jnp.take(scores, jnp.asarray(columns, jnp.int32), axis=1), axis=1)


def evaluate_model(suite: Suite, params: Any) -> tuple[Logs, dict[str, Answers]]:
    """Returns ``(logs, answers)``: every metric with its values, answers per split.

    ROUGE-L recall, probability exp(mean log p) of the gold answer, attribution of
    the forget answers to the forget owners, their likelihood under the retrained
    model, and their text quality.
    """
    logs: Logs = {}
    given: dict[str, Answers] = {}
    for split, tokens in suite.tokens.items():
        answers = answer(suite, params, tokens)
        given[split] = answers
        recalls = shared_out(rouge_l_recall, answers.text, suite.gold[split])
        logs[f"{split}_rouge"] = aggregate(recalls)
        logps = in_batches(
            suite, tokens, functools.partial(mean_logp, suite.model, params)
        )
        logs[f"{split}_probability"] = aggregate(np.exp(logps).tolist())
        if split == "forget":
            logs.update(judge_answers(suite, tokens, answers))
    return logs, given


def judge_answers(suite: Suite, prompts: TokenBatch, answers: Answers) -> Logs:
    """Attribution, retrained likelihood and text quality of the forget answers."""
    given = prompts._replace(response=answers.tokens, response_mask=answers.mask)
    logs: Logs = {}
    for name, (kernel, index) in suite.judges.items():
        score = functools.partial(
            owners_score, kernel, suite.forget_columns, suite.reference, index
        )
        logs[name] = aggregate(in_batches(suite, given, score).tolist())
    if suite.retrained is not None:
        score = functools.partial(mean_logp, suite.model, suite.retrained)
        logs["retrained_likelihood"] = aggregate(
            in_batches(suite, given, score).tolist()
        )
    quality = text_quality(answers.text, answers.finished)
    logs.update({f"forget_{name}": aggregate(v) for name, v in quality.items()})
    return logs
