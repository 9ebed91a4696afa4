"""Evaluation of one model of a run on forget, retain and test records."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dareu_jax.attribution import Kernel
from dareu_jax.attribution.finite import check_scores
from dareu_jax.data import TokenBatch, Tokenizer, Widths
from dareu_jax.data.batches import over_records
from dareu_jax.evaluation.metrics.metric import aggregate
from dareu_jax.models import Decoder, response_logps
from dareu_jax.models.decode import greedy, texts_of
from dareu_jax.parallel import Layouts, Preemption, shared_out
from dareu_jax.registry import METRICS
from dareu_jax.training.progress import counting

Array = jax.Array
Logs = dict[str, dict[str, Any]]
TextScore = Callable[[list[str], list[str]], list[float]]


class Answers(NamedTuple):
    """Greedy answers to N prompts: ``[N, T]`` tokens and mask, decoded text."""

    tokens: np.ndarray
    mask: np.ndarray
    text: list[str]
    finished: list[bool]


@dataclasses.dataclass(frozen=True)
class RunSuite:
    """What every model is judged on and by.

    Attributes:
      tokens, gold: gold records and answers by split: ``forget``, ``retain``, ``test``.
      judges: metric name -> ``(kernel, index)``.
      forget_columns: columns of the forget owners in the judges' scores.
      retrained: parameters of the retrained model, or None.
      reference: parameters of the original, for kernels that need them.
      place: puts a numpy batch on the devices; layouts: where answers are decoded.
      widths: of batches, see `fit_widths`; none: that of the tokens alone.
      preemption: whether the machine is being taken away; asked before every batch.
      counted: is told how many more rows were read or answered.
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
    widths: Widths = ()
    counted: Callable[[int], None] = lambda rows: None


def in_batches(
    suite: RunSuite, tokens: TokenBatch, score: Callable, *, per_token: bool = True
) -> Any:
    """Return ``score`` of batches of like length, in the order of the N records.

    Args:
      tokens: the records; score: from a batch to arrays ``[B, ...]``.
      per_token: whether results have an axis T. Where they have none, responses too
        are as wide as a batch needs them, not prompts alone.

    Raises:
      Preempted: the machine is being taken away.
    """

    def checked(batch: TokenBatch) -> Any:
        suite.preemption.check("what was finished is saved")
        return score(batch)

    widths, told = suite.widths, counting(checked, suite.counted)
    if per_token:
        widths = tuple((p, tokens.response.shape[1]) for p, _ in widths)
    return over_records(tokens, suite.batch_size, suite.place, told, widths)


def answer(suite: RunSuite, params: Any, tokens: TokenBatch) -> Answers:
    """Decode greedily from every prompt."""
    stop_ids, limit = suite.tokenizer.stop_ids, suite.max_new_tokens
    decode = greedy(suite.model, params, stop_ids, limit, layouts=suite.layouts)
    rollout = in_batches(suite, tokens, decode)
    ends = rollout.mask & np.isin(rollout.tokens, stop_ids)
    text = texts_of(suite.tokenizer, rollout)
    return Answers(rollout.tokens, rollout.mask, text, ends.any(axis=1).tolist())


@functools.partial(jax.jit, static_argnames="model")
def mean_logp(model: Decoder, params: Any, batch: TokenBatch) -> Array:
    """Return 1/|a| sum_t log p(a_t | q, a_<t) ``[B]``, end of text included."""
    logps = response_logps(model, params, batch)
    count = jnp.sum(batch.response_mask.astype(jnp.float32), axis=1)
    return jnp.sum(logps, axis=1) / jnp.maximum(count, 1.0)


@functools.partial(jax.jit, static_argnames=("kernel", "columns"))
def owners_score(
    kernel: Kernel, columns: tuple[int, ...], reference, index, batch: TokenBatch
) -> Array:
    """Return attribution of responses to the owners of ``columns``, summed, ``[B]``."""
    scores = kernel.score(reference, index, batch)
    return jnp.sum(jnp.take(scores, jnp.asarray(columns, jnp.int32), axis=1), axis=1)


def mean_logps(suite: RunSuite, params: Any, tokens: TokenBatch) -> np.ndarray:
    """Return `mean_logp` of responses ``[N]``."""
    score = functools.partial(mean_logp, suite.model, params)
    return in_batches(suite, tokens, score, per_token=False)


def attribution(
    suite: RunSuite, judge: tuple[Kernel, Any], tokens: TokenBatch
) -> np.ndarray:
    """Return `owners_score` of responses ``[N]`` by a judge, all forget owners."""
    kernel, index = judge
    score = functools.partial(
        owners_score, kernel, suite.forget_columns, suite.reference, index
    )
    scores = in_batches(suite, tokens, score, per_token=False)
    names = [f"answer {n} of {len(scores)}" for n in range(1, len(scores) + 1)]
    check_scores(kernel.name, scores[:, None], names, ["(those who withdraw)"])
    return scores


def with_answers(tokens: TokenBatch, answers: Answers) -> TokenBatch:
    """Return prompts ``[N, ...]`` with a model's own answers as responses."""
    return tokens._replace(response=answers.tokens, response_mask=answers.mask)


@dataclasses.dataclass(frozen=True)
class Judged:
    """One model and what is measured of it: all that a metric may look at.

    Every measurement is made when a metric first asks for it, and once.
    """

    suite: RunSuite
    params: Any

    @functools.cached_property
    def answers(self) -> dict[str, Answers]:
        """Return the model's greedy answers to the prompts of every split."""
        tokens = self.suite.tokens.items()
        return {split: answer(self.suite, self.params, x) for split, x in tokens}

    @functools.cached_property
    def said(self) -> TokenBatch:
        """Return the forget prompts with the model's own answers as responses."""
        return with_answers(self.suite.tokens["forget"], self.answers["forget"])

    @functools.cached_property
    def gold_logps(self) -> dict[str, np.ndarray]:
        """Return `mean_logp` of the gold answers ``[N]``, by split."""
        tokens = self.suite.tokens.items()
        return {split: mean_logps(self.suite, self.params, x) for split, x in tokens}

    def of_texts(self, split: str, score: TextScore) -> list[float] | None:
        """Return ``score(answers, gold answers)``, each process doing its share."""
        if split not in self.answers:
            return None
        return shared_out(score, self.answers[split].text, self.suite.gold[split])

    def attribution(self, judge: str) -> np.ndarray | None:
        """Return `owners_score` of the forget answers ``[N]`` by one of the judges."""
        if judge not in self.suite.judges:
            return None
        return attribution(self.suite, self.suite.judges[judge], self.said)

    def retrained_logps(self) -> np.ndarray | None:
        """Return `mean_logp` of the forget answers ``[N]`` by the retrained model."""
        if self.suite.retrained is None:
            return None
        return mean_logps(self.suite, self.suite.retrained, self.said)


def evaluate_model(suite: RunSuite, params: Any) -> tuple[Logs, dict[str, Answers]]:
    """Return ``(logs, answers)``: every registered metric, and answers per split."""
    judged, logs = Judged(suite, params), {}
    for name in METRICS.names():
        compute = METRICS.get(name).compute
        if compute is not None and (values := compute(judged)) is not None:
            logs[name] = aggregate(values, f"metric {name}")
    return logs, judged.answers
