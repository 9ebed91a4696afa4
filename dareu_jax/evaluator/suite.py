"""What every suite does with a model: losses, choices and answers, kept on disk."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from dareu_jax.attributor.model import Model
from dareu_jax.evaluation.refusals import refusals
from dareu_jax.evaluation.rouge import rouge_scores
from dareu_jax.evaluation.text_quality import text_quality
from dareu_jax.evaluator.kept import Kept
from dareu_jax.evaluator.measure import (
    Pair,
    Reading,
    answer_logps,
    answer_losses,
    beginnings,
    memory_scores,
    own_answers,
)
from dareu_jax.evaluator.tables import Table, by_index, rouge_table


class Judge:
    """A model, how it reads, and what was measured of it before.

    Args:
      model, reading: who answers, and how text becomes tokens; kept: parts on disk.
    """

    def __init__(self, model: Model, reading: Reading, kept: Kept):
        self.model, self.reading, self.kept = model, reading, kept
        self.lead: dict[Pair, int] = {}

    def losses(self, name: str, pairs: list[Pair]) -> np.ndarray:
        """Mean nats per token ``[N]`` of given answers, end of text included."""

        def make() -> dict[str, list[float]]:
            found = answer_losses(self.model, self.reading, pairs)
            return {"loss": found.loss.tolist(), "lead": found.lead.tolist()}

        kept = self.kept.part(f"{name}_losses", pairs, make)
        self.lead |= zip(pairs, kept["lead"], strict=True)
        return np.asarray(kept["loss"])

    def choices(self, name: str, pairs: list[Pair]) -> np.ndarray:
        """log p ``[N]`` of given answers, without the end of text."""

        def make() -> list[float]:
            return answer_logps(self.model, self.reading, pairs).tolist()

        return np.asarray(self.kept.part(name, pairs, make))

    def memory(self, name: str, pairs: list[Pair]) -> dict[str, np.ndarray]:
        """Membership attacks and memorisation of given answers, see `measure`."""

        def make() -> dict[str, list[float]]:
            found = memory_scores(self.model, self.reading, pairs)
            return {attack: scores.tolist() for attack, scores in found.items()}

        kept = self.kept.part(f"{name}_memory", pairs, make)
        return {attack: np.asarray(scores) for attack, scores in kept.items()}

    def said(
        self,
        name: str,
        asked: list[str],
        limit: int | None = None,
        gold: list[str] | None = None,
    ) -> tuple[list[str], list[bool]]:
        """The model's own answers, and whether each ended by itself.

        Args:
          name: of the part; asked: N questions; limit: new tokens, none: as it reads.
          gold: right answers; what is known of them by `losses` is not decoded again.
        """
        limit = limit or self.reading.max_new_tokens
        reading = dataclasses.replace(self.reading, max_new_tokens=limit)

        def make() -> dict[str, Any]:
            pairs = list(zip(asked, gold or [""] * len(asked), strict=True))
            lead = [self.lead.get(pair, 0) for pair in pairs]
            known = beginnings(self.model, reading, pairs, lead)
            said, ended = own_answers(self.model, reading, asked, known)
            return {"said": said, "ended": ended}

        found = self.kept.part(name, [asked, limit], make)
        return found["said"], found["ended"]

    def answers(
        self, name: str, short: str, asked: list[str], gold: list[str]
    ) -> dict[str, Table]:
        """ROUGE of the model's own answers, and how well they are made."""
        said, ended = self.said(f"{name}_answers", asked, gold=gold)
        table = rouge_table(rouge_scores(said, gold), asked, gold, said)
        quality = quality_table(said, ended)
        return {f"{short}_Q_A_ROUGE": table, f"{short}_text_quality": quality}


def quality_table(said: Sequence[str], ended: Sequence[bool]) -> Table:
    """Signs of broken answers, and refusals; the aggregate is the share that is broken.

    To refuse is no sign of a broken model, and none of one that never knew.
    """
    quality = text_quality(said, ended) | {"refusal": refusals(said)}
    rows = [dict(zip(quality, row)) for row in zip(*quality.values(), strict=True)]
    bad = [max(row["empty"], row["repeated"], row["unfinished"]) for row in rows]
    return by_index(float(np.mean(bad)), rows)
