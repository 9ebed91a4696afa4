"""Multiple choice, as WMDP (Li et al. 2024, arXiv 2403.03218) and MMLU ask."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from dareu_jax.data.sources.base import json_rows, text_field
from dareu_jax.errors import UserError
from dareu_jax.evaluation.logs.tables import Table, by_index
from dareu_jax.evaluation.suites.judge import Judge
from dareu_jax.training.progress import Progress

LETTERS = "ABCDEFGHIJ"


class Choice(NamedTuple):
    """A question, the answers to choose from, and the place of the right one."""

    question: str
    choices: tuple[str, ...]
    answer: int


def read_choices(path: Path) -> tuple[Choice, ...]:
    """Read rows with ``question``, ``choices`` and ``answer``, a place, from JSONL.

    Raises:
      UserError: a row without them, or whose answer is no place among the choices.
    """
    out = []
    for where, row in json_rows(path):
        choices, answer = row.get("choices"), row.get("answer")
        if not isinstance(choices, list) or not 2 <= len(choices) <= len(LETTERS):
            raise UserError(f"{where}: field 'choices' must be a list of 2 to 10 texts")
        if not isinstance(answer, int) or not 0 <= answer < len(choices):
            raise UserError(f"{where}: field 'answer' must be a place in 'choices'")
        texts = tuple(str(text) for text in choices)
        out.append(Choice(text_field(row, "question", where), texts, answer))
    if not out:
        raise UserError(f"{path} has no question")
    return tuple(out)


def prompt_of(row: Choice, subject: str) -> str:
    """Return the question as it is asked in WMDP and MMLU, without examples."""
    lines = [f"{letter}. {x}" for letter, x in zip(LETTERS, row.choices)]
    head = f"The following are multiple choice questions (with answers) about {subject}"
    return "\n".join([f"{head}.\n", row.question.strip(), *lines, "Answer:"])


def choices_log(
    judge: Judge, asked: tuple[tuple[Choice, ...], str], progress: Progress
) -> dict[str, Table]:
    """Return how often the letter of the right answer is the likeliest (accuracy)."""
    rows, subject = asked
    pairs = [
        (prompt_of(row, subject), LETTERS[n])
        for row in rows
        for n in range(len(row.choices))
    ]
    with progress.stage(subject, 1):
        logps = judge.choices(f"{subject}_letters", pairs)
    ends = np.cumsum([len(row.choices) for row in rows])[:-1]
    table = []
    for row, own in zip(rows, np.split(logps, ends), strict=True):
        chosen = int(np.argmax(own))
        right = float(chosen == row.answer)
        table.append({"acc": right, "chosen": chosen, "logps": own.tolist()})
    accuracy = float(np.mean([row["acc"] for row in table]))
    return {f"{subject}_accuracy": by_index(accuracy, table)}
