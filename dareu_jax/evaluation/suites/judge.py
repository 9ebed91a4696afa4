"""A model under a suite: its losses, choices and answers, kept on disk."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from dareu_jax.evaluation.logs.tables import Table, by_index, rouge_table
from dareu_jax.evaluation.metrics.likelihood import Perplexity, perplexity
from dareu_jax.evaluation.metrics.refusals import names_of_others, refusals
from dareu_jax.evaluation.metrics.rouge import rouge_scores
from dareu_jax.evaluation.metrics.text_quality import has_room, text_quality
from dareu_jax.evaluation.suites import measure
from dareu_jax.evaluation.suites.attacks import (
    FORWARD,
    MEMORISED,
    Given,
    beyond_reference,
    gradient_norms,
    mean_losses,
    memory_scores,
)
from dareu_jax.evaluation.suites.kept import Kept
from dareu_jax.models.loaded import LoadedModel
from dareu_jax.training.progress import Progress, counter

T = TypeVar("T")


@dataclasses.dataclass
class Judge:
    """A model, how it reads, and what was measured of it before.

    Attributes:
      model, reading: who answers, and how text becomes tokens; kept: parts on disk.
      attacks: of `ATTACKS`; reference: the other model of the attack of that name.
      progress: shows how many rows of a part are done.
      lead: of given answers, how many first tokens the model says by itself.
    """

    model: LoadedModel
    reading: measure.Reading
    kept: Kept
    attacks: Sequence[str] = FORWARD
    reference: LoadedModel | None = None
    progress: Progress = dataclasses.field(default_factory=Progress)
    lead: dict[measure.Pair, int] = dataclasses.field(default_factory=dict)

    def _shown(
        self, title: str, rows: int, model: LoadedModel, make: Callable[..., T]
    ) -> Callable[[], T]:
        """Return ``make(model)``, which shows how many of its rows are done."""

        def shown() -> T:
            with self.progress.stage(title, rows) as advance:
                return make(model._replace(counted=counter(advance)))

        return shown

    def losses(self, name: str, pairs: list[measure.Pair]) -> np.ndarray:
        """Return mean nats per token ``[N]`` of given answers, end of text included."""

        def make(model: LoadedModel) -> dict[str, list[float]]:
            found = measure.answer_losses(model, self.reading, pairs)
            return {"loss": found.loss.tolist(), "lead": found.lead.tolist()}

        shown = self._shown(f"losses of {name}", len(pairs), self.model, make)
        kept = self.kept.part(f"{name}_losses", pairs, shown)
        self.lead |= zip(pairs, kept["lead"], strict=True)
        return np.asarray(kept["loss"])

    def perplexity(self, pairs: list[measure.Pair], losses: np.ndarray) -> Perplexity:
        """Return that of given answers, from `losses`: a mean stands for each token."""
        mask = measure.as_tokens(self.model, self.reading, pairs).response_mask
        return perplexity(np.broadcast_to(-losses[:, None], mask.shape), mask)

    def choices(self, name: str, pairs: list[measure.Pair]) -> np.ndarray:
        """Return log p ``[N]`` of given answers, without the end of text."""

        def make(model: LoadedModel) -> np.ndarray:
            return measure.answer_logps(model, self.reading, pairs)

        shown = self._shown(f"choices of {name}", len(pairs), self.model, make)
        return self.kept.numbers(name, pairs, shown)

    def memory(self, name: str, pairs: list[measure.Pair]) -> dict[str, np.ndarray]:
        """Return `attacked` of given answers."""
        tokens = measure.as_tokens(self.model, self.reading, pairs)
        given = Given(tokens, [text for _, text in pairs], has_end=True)
        return self.attacked(name, pairs, given)

    def attacked(self, name: str, own: Any, given: Given) -> dict[str, np.ndarray]:
        """Return the judge's attacks and `MEMORISED` ``[N]`` each, by name."""
        size, rows = self.reading.batch_size, len(given.texts)

        def make(model: LoadedModel) -> dict[str, list[float]]:
            found = memory_scores(model, size, given)
            return {attack: scores.tolist() for attack, scores in found.items()}

        shown = self._shown(f"attacks on {name}", rows, self.model, make)
        kept = self.kept.part(f"{name}_memory", own, shown)
        scores = {attack: np.asarray(x) for attack, x in kept.items()}
        if "gradnorm" in self.attacks:
            norms = functools.partial(gradient_norms, size=size, given=given)
            counted = self._shown(f"gradients of {name}", rows, self.model, norms)
            scores["gradnorm"] = self.kept.numbers(f"{name}_gradnorm", own, counted)
        if (other := self.reference) is not None:
            known = functools.partial(mean_losses, size=size, given=given)
            counted = self._shown(f"reference's losses of {name}", rows, other, known)
            whose = [own, other.fingerprint]
            losses = self.kept.numbers(f"{name}_reference", whose, counted)
            scores["reference"] = beyond_reference(scores["loss"], losses)
        return {attack: scores[attack] for attack in (*self.attacks, *MEMORISED)}

    def said(
        self,
        name: str,
        asked: list[str],
        limit: int | None = None,
        gold: list[str] | None = None,
    ) -> tuple[list[str], list[bool]]:
        """Return the model's own answers, and whether each ended by itself.

        Args:
          name: of the part; asked: N questions; limit: new tokens, none: as it reads.
          gold: right answers; what is known of them by `losses` is not decoded again.
        """
        limit = limit or self.reading.max_new_tokens
        reading = dataclasses.replace(self.reading, max_new_tokens=limit)

        def make(model: LoadedModel) -> dict[str, Any]:
            guessed = None
            if gold is not None:
                pairs = list(zip(asked, gold, strict=True))
                lead = [self.lead.get(pair, 0) for pair in pairs]
                guessed = measure.guesses(model, self.reading, pairs, lead)
            said, ended = measure.own_answers(model, reading, asked, guessed)
            return {"said": said, "ended": ended}

        rows = len(asked) * measure.rounds_of(limit)
        title = f"answers to {name.removesuffix('_answers')}"
        shown = self._shown(title, rows, self.model, make)
        found = self.kept.part(name, [asked, limit], shown)
        return found["said"], found["ended"]

    def answers(
        self,
        name: str,
        short: str,
        asked: list[str],
        gold: list[str],
        others: Sequence[Sequence[str]] | None = None,
    ) -> dict[str, Table]:
        """Return ROUGE of the model's own answers, and signs of their quality.

        ``short`` names the set in the log; ``others`` are people whom it is not about.
        """
        said, ended = self.said(f"{name}_answers", asked, gold=gold)
        table = rouge_table(rouge_scores(said, gold), asked, gold, said)
        limit = self.reading.max_new_tokens
        _, right = measure.encoded(self.model, self.reading, list(zip(asked, gold)))
        limits = [Limit(limit, len(tokens)) for tokens in right]
        quality = quality_table(said, ended, others, limits)
        return {f"{short}_Q_A_ROUGE": table, f"{short}_text_quality": quality}


class Limit(NamedTuple):
    """Tokens that an answer may have, and that the right answer has, with its end."""

    limit: int
    gold_tokens: int


def quality_table(
    said: Sequence[str],
    ended: Sequence[bool],
    others: Sequence[Sequence[str]] | None = None,
    limits: Sequence[Limit] | None = None,
) -> Table:
    """Return signs of broken answers, and refusals; the aggregate is the broken share.

    To refuse is no sign of a broken model, and none of one that never knew; nor is it
    to name one of ``others``, of which there is a list per answer, or to be cut by one
    of the ``limits`` that leaves no room for an end.
    """
    quality = text_quality(said, ended) | {"refusal": refusals(said)}
    if others is not None:
        pairs = zip(said, others, strict=True)
        quality["names_other"] = [float(bool(names_of_others(*x))) for x in pairs]
    endless = quality["unfinished"]
    if limits is not None:
        room = [float(has_room(*limit)) for limit in limits]
        endless = [x * y for x, y in zip(endless, room, strict=True)]
        for field in Limit._fields:
            quality[field] = [float(getattr(limit, field)) for limit in limits]
    rows = [dict(zip(quality, row)) for row in zip(*quality.values(), strict=True)]
    bad = [
        max(row["empty"], row["repeated"], no_end)
        for row, no_end in zip(rows, endless, strict=True)
    ]
    return by_index(float(np.mean(bad)), rows)
