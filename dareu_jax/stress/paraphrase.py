"""The same questions in other words, where the data has them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dareu_jax import corpus as owned
from dareu_jax.corpus.sources.base import json_lines
from dareu_jax.stages import Run


class Paraphrases(NamedTuple):
    """Rows of the forget records, each with its question in other words.

    ``missing`` says why there are none, or is empty.
    """

    rows: list[int]
    prompts: list[str]
    missing: str = ""


def paraphrases_of(run: Run) -> Paraphrases:
    """Held-out records with a forget record's answer, or TOFU's own paraphrases."""
    forget = run.split.forget
    found = from_held_out(forget, run.corpus.test)
    if not found.rows and run.cfg.corpus.source == "tofu" and run.cfg.corpus.path:
        found = from_tofu(forget, Path(run.cfg.corpus.path))
    if found.rows:
        return found
    missing = "no question of the forget records is there in other words"
    if run.cfg.corpus.source == "tofu":
        missing += "; corpus.path can name a folder with TOFU's *_perturbed.json files"
    return Paraphrases([], [], missing)


def from_held_out(
    forget: Sequence[owned.Record], held_out: Sequence[owned.Record]
) -> Paraphrases:
    """Held-out records of the same owner with the same answer and another question."""
    known: dict[tuple[str, str], list[str]] = {}
    for record in held_out:
        known.setdefault((record.owner, record.response), []).append(record.prompt)
    pairs = [
        (row, prompt)
        for row, record in enumerate(forget)
        for prompt in known.get((record.owner, record.response), ())
        if prompt != record.prompt
    ]
    return Paraphrases([row for row, _ in pairs], [prompt for _, prompt in pairs])


def from_tofu(forget: Sequence[owned.Record], folder: Path) -> Paraphrases:
    """``paraphrased_question`` of the perturbed files in TOFU's folder."""
    known: dict[str, str] = {}
    for path in sorted(folder.glob("*_perturbed.json")):
        for _, line in json_lines(path):
            question, other = line.get("question"), line.get("paraphrased_question")
            if isinstance(question, str) and isinstance(other, str):
                known[question] = other
    rows = [row for row, r in enumerate(forget) if r.prompt in known]
    return Paraphrases(rows, [known[forget[row].prompt] for row in rows])
