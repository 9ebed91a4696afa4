"""TOFU's evaluation: open-unlearning's sets, prompts, metrics and names of metrics."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dareu_jax.attributor.model import Model
from dareu_jax.corpus.questions import Question, TofuQuestions
from dareu_jax.evaluation.rouge import rouge_scores
from dareu_jax.evaluation.text_quality import text_quality
from dareu_jax.evaluation.truth_ratio import closer_to_one, geometric, true_is_better
from dareu_jax.evaluation.utility import (
    TERMS,
    model_utility,
    normalised_probability,
)
from dareu_jax.evaluator.kept import Kept
from dareu_jax.evaluator.measure import Reading, answer_losses, own_answers
from dareu_jax.evaluator.tables import (
    Table,
    by_index,
    probabilities,
    rouge_table,
    values,
)
from dareu_jax.reporting.progress import Progress

SHORT = {
    "forget": "forget",
    "retain": "retain",
    "real_authors": "ra",
    "world_facts": "wf",
}
CHOICES = ("real_authors", "world_facts")


class Judged:
    """A model on TOFU's questions.

    Args:
      model, reading: who answers, and how text becomes tokens.
      questions: TOFU's sets; kept: parts that were made before.
      progress: where news goes.
    """

    def __init__(
        self,
        model: Model,
        reading: Reading,
        questions: TofuQuestions,
        kept: Kept,
        progress: Progress,
    ):
        self.model, self.reading, self.kept = model, reading, kept
        self.sets = {name: getattr(questions, name) for name in SHORT}
        self.progress = progress

    def log(self) -> dict[str, Table]:
        """Every metric of every set, and model utility over them."""
        out: dict[str, Table] = {}
        for name, rows in self.sets.items():
            with self.progress.stage(name, 1):
                out |= self.set_log(name, rows)
        terms = {term: out[term]["agg_value"] for term in TERMS}
        return out | {"model_utility": {"agg_value": model_utility(terms)}}

    def set_log(self, name: str, rows: Sequence[Question]) -> dict[str, Table]:
        """Every metric of one set."""
        short, is_choice = SHORT[name], name in CHOICES
        gold = self.losses(f"{name}_gold", [(q.prompt, q.answer) for q in rows])
        right = gold
        if not is_choice:
            right = self.losses(f"{name}_right", [(q.prompt, q.right) for q in rows])
        pairs = [(q.prompt, text) for q in rows for text in q.wrong]
        wrong = self.losses(f"{name}_wrong", pairs).reshape(len(rows), -1)
        out = {
            f"{short}_Q_A_Prob": probabilities(gold),
            f"{short}_Q_A_PERT_Prob": probabilities(wrong),
            **self.truth(short, right, wrong),
            **self.answers(name, rows),
        }
        if is_choice:
            share = normalised_probability(np.exp(-gold), np.exp(-wrong))
            out[f"{short}_Q_A_Prob_normalised"] = values("prob", share)
        else:
            out[f"{short}_Q_A_PARA_Prob"] = probabilities(right)
        return out

    def truth(
        self, short: str, right: np.ndarray, wrong: np.ndarray
    ) -> dict[str, Table]:
        """Truth ratios, geometric; open-unlearning names that of forget otherwise."""
        ratio = geometric(right, wrong)
        if short == "forget":
            table = values("score", ratio, closer_to_one(ratio))
            return {"forget_truth_ratio": table}
        return {f"{short}_Truth_Ratio": values("score", ratio, true_is_better(ratio))}

    def losses(self, name: str, pairs: list[tuple[str, str]]) -> np.ndarray:
        """Losses of given answers ``[N]``, from disk where they are there."""

        def make() -> list[float]:
            return answer_losses(self.model, self.reading, pairs).tolist()

        return np.asarray(self.kept.part(name, pairs, make))

    def answers(self, name: str, rows: Sequence[Question]) -> dict[str, Table]:
        """ROUGE of the model's own answers, and how well they are made."""
        asked, gold = [q.prompt for q in rows], [q.answer for q in rows]

        def make() -> dict[str, Any]:
            said, ended = own_answers(self.model, self.reading, asked)
            return {"said": said, "ended": ended}

        own = [asked, self.reading.max_new_tokens]
        found = self.kept.part(f"{name}_answers", own, make)
        said, ended = found["said"], found["ended"]
        table = rouge_table(rouge_scores(said, gold), asked, gold, said)
        quality = text_quality(said, ended)
        made = [dict(zip(quality, row)) for row in zip(*quality.values(), strict=True)]
        bad = np.mean([max(q["empty"], q["repeated"], q["unfinished"]) for q in made])
        short = SHORT[name]
        return {
            f"{short}_Q_A_ROUGE": table,
            f"{short}_text_quality": by_index(float(bad), made),
        }
