"""TOFU's evaluation, with the sets, prompts and names of open-unlearning."""

from collections.abc import Sequence

import numpy as np

from dareu_jax.data.tofu_questions import Question, TofuQuestions
from dareu_jax.evaluation.logs import tables
from dareu_jax.evaluation.logs.formats import PARAPHRASED
from dareu_jax.evaluation.metrics import truth_ratio, utility
from dareu_jax.evaluation.metrics.rouge import rouge_scores
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
) -> dict[str, tables.Table]:
    """Return every metric of every set, and model utility over them."""
    out: dict[str, tables.Table] = {}
    for name in SHORT:
        with progress.stage(name, 1):
            out |= set_log(judge, name, getattr(questions, name))
    with progress.stage("membership", 1):
        out |= memory_log(judge, questions.forget, questions.holdout)
    terms = {term: out[term]["agg_value"] for term in utility.TERMS}
    return out | {"model_utility": {"agg_value": utility.model_utility(terms)}}


def set_log(
    judge: Judge, name: str, rows: Sequence[Question]
) -> dict[str, tables.Table]:
    """Return every metric of one set."""
    short, is_choice = SHORT[name], name in CHOICES
    good = ("answer",) if is_choice else ("answer", "right")
    texts = [[getattr(q, field) for field in good] + [*q.wrong] for q in rows]
    pairs = [(q.prompt, text) for q, own in zip(rows, texts) for text in own]
    losses = judge.losses(name, pairs).reshape(len(rows), -1)
    gold, right, wrong = losses[:, 0], losses[:, len(good) - 1], losses[:, len(good) :]
    asked, answers = [q.prompt for q in rows], [q.answer for q in rows]
    out = {
        f"{short}_Q_A_Prob": tables.probabilities(gold),
        f"{short}_Q_A_PERT_Prob": tables.probabilities(wrong),
        **truth(short, right, wrong),
        **judge.answers(name, short, asked, answers),
    }
    if is_choice:
        share = utility.normalised_probability(np.exp(-gold), np.exp(-wrong))
        out[f"{short}_Q_A_Prob_normalised"] = tables.values("prob", share)
    else:
        out[f"{short}_Q_A_PARA_Prob"] = tables.probabilities(right)
    if name == "forget" and all(q.paraphrased for q in rows):
        asked = [q.paraphrased for q in rows]
        said, _ = judge.said("forget_paraphrased_answers", asked)
        scores = rouge_scores(said, answers)
        out[PARAPHRASED] = tables.rouge_table(scores, asked, answers, said)
    return out


def memory_log(
    judge: Judge, forget: Sequence[Question], holdout: Sequence[Question]
) -> dict[str, tables.Table]:
    """Return attacks against authors never seen, and memorisation of forget."""
    seen, unseen = (
        judge.memory(name, [(q.prompt, q.answer) for q in rows])
        for name, rows in (("forget", forget), ("holdout", holdout))
    )
    out = {name: tables.values("score", seen.pop(name)) for name in MEMORISED}
    for name, scores in seen.items():
        sides = {"forget": scores, "holdout": unseen[name]}
        out[f"mia_{name}"] = tables.attack_table(sides)
    return out


def truth(short: str, right: np.ndarray, wrong: np.ndarray) -> dict[str, tables.Table]:
    """Return geometric truth ratios; open-unlearning has another name for forget's."""
    ratio = truth_ratio.geometric(right, wrong)
    if short == "forget":
        return {
            "forget_truth_ratio": tables.values(
                "score", ratio, truth_ratio.closer_to_one(ratio)
            )
        }
    return {
        f"{short}_Truth_Ratio": tables.values(
            "score", ratio, truth_ratio.true_is_better(ratio)
        )
    }
