"""TOFU's evaluation, with the sets, prompts and names of open-unlearning."""

from collections.abc import Sequence

import numpy as np

from dareu_jax.data.tofu_questions import Question, TofuQuestions
from dareu_jax.evaluation.logs.formats import PARAPHRASED
from dareu_jax.evaluation.logs.tables import (
    Table,
    attack_table,
    probabilities,
    rouge_table,
    values,
)
from dareu_jax.evaluation.metrics.rouge import rouge_scores
from dareu_jax.evaluation.metrics.truth_ratio import (
    closer_to_one,
    geometric,
    true_is_better,
)
from dareu_jax.evaluation.metrics.utility import (
    TERMS,
    model_utility,
    normalised_probability,
)
from dareu_jax.evaluation.suites.attacks import MEMORISED
from dareu_jax.evaluation.suites.judge import Judge
from dareu_jax.training.progress import Progress

SHORT = {
    "forget": "forget",
    "retain": "retain",
    "real_authors": "ra",
    "world_facts": "wf",
}
CHOICES = ("real_authors", "world_facts")


def tofu_log(
    judge: Judge, questions: TofuQuestions, progress: Progress
) -> dict[str, Table]:
    """Return every metric of every set, and model utility over them."""
    out: dict[str, Table] = {}
    for name in SHORT:
        with progress.stage(name, 1):
            out |= set_log(judge, name, getattr(questions, name))
    with progress.stage("membership", 1):
        out |= memory_log(judge, questions.forget, questions.holdout)
    terms = {term: out[term]["agg_value"] for term in TERMS}
    return out | {"model_utility": {"agg_value": model_utility(terms)}}


def set_log(judge: Judge, name: str, rows: Sequence[Question]) -> dict[str, Table]:
    """Return every metric of one set."""
    short, is_choice = SHORT[name], name in CHOICES
    good = ("answer",) if is_choice else ("answer", "right")
    texts = [[getattr(q, field) for field in good] + [*q.wrong] for q in rows]
    pairs = [(q.prompt, text) for q, own in zip(rows, texts) for text in own]
    losses = judge.losses(name, pairs).reshape(len(rows), -1)
    gold, right, wrong = losses[:, 0], losses[:, len(good) - 1], losses[:, len(good) :]
    asked, answers = [q.prompt for q in rows], [q.answer for q in rows]
    out = {
        f"{short}_Q_A_Prob": probabilities(gold),
        f"{short}_Q_A_PERT_Prob": probabilities(wrong),
        **truth(short, right, wrong),
        **judge.answers(name, short, asked, answers),
    }
    if is_choice:
        share = normalised_probability(np.exp(-gold), np.exp(-wrong))
        out[f"{short}_Q_A_Prob_normalised"] = values("prob", share)
    else:
        out[f"{short}_Q_A_PARA_Prob"] = probabilities(right)
    if name == "forget" and all(q.paraphrased for q in rows):
        asked = [q.paraphrased for q in rows]
        said, _ = judge.said("forget_paraphrased_answers", asked)
        scores = rouge_scores(said, answers)
        out[PARAPHRASED] = rouge_table(scores, asked, answers, said)
    return out


def memory_log(
    judge: Judge, forget: Sequence[Question], holdout: Sequence[Question]
) -> dict[str, Table]:
    """Return attacks against authors never seen, and memorisation of forget."""
    seen, unseen = (
        judge.memory(name, [(q.prompt, q.answer) for q in rows])
        for name, rows in (("forget", forget), ("holdout", holdout))
    )
    out = {name: values("score", seen.pop(name)) for name in MEMORISED}
    for name, scores in seen.items():
        sides = {"forget": scores, "holdout": unseen[name]}
        out[f"mia_{name}"] = attack_table(sides)
    return out


def truth(short: str, right: np.ndarray, wrong: np.ndarray) -> dict[str, Table]:
    """Return geometric truth ratios; open-unlearning has another name for forget's."""
    ratio = geometric(right, wrong)
    if short == "forget":
        return {"forget_truth_ratio": values("score", ratio, closer_to_one(ratio))}
    return {f"{short}_Truth_Ratio": values("score", ratio, true_is_better(ratio))}
