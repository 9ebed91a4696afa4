"""MUSE (Shi et al. 2024, arXiv 2407.06460): memorisation, and membership of texts."""

from pathlib import Path
from typing import Any, NamedTuple

from dareu_jax.data import tokenise_whole
from dareu_jax.data.sources.base import json_rows, json_texts, text_field
from dareu_jax.evaluation.logs.tables import Table, attack_table, by_index
from dareu_jax.evaluation.metrics.rouge import rouge_scores
from dareu_jax.evaluation.suites.attacks import Given
from dareu_jax.evaluation.suites.judge import Judge, quality_table
from dareu_jax.models.loaded import MULTIPLE
from dareu_jax.training.progress import Progress

VERBATIM, KNOWLEDGE = 128, 32
"""New tokens of a continuation and of an answer, as in the original code."""
LONGEST = 2048
"""Tokens of a text that count, as in open-unlearning; the original code cuts none, and
its texts have no more of them in its tokenizer."""
ENDS = ("\n\n", "\nQuestion", "Question:")
FILES = {
    "verbmem": "verbmem/forget.json",
    "forget": "knowmem/forget_qa.json",
    "forget_examples": "knowmem/forget_qa_icl.json",
    "retain": "knowmem/retain_qa.json",
    "retain_examples": "knowmem/retain_qa_icl.json",
}
SIDES = ("forget", "retain", "holdout")


class MuseData(NamedTuple):
    """Pairs of prompt and gold text: continuations, and questions with examples."""

    verbatim: list[tuple[str, str]]
    forget: list[tuple[str, str]]
    retain: list[tuple[str, str]]
    private: dict[str, list[str]]


def read_muse(folder: Path) -> MuseData:
    """Read the files of one corpus of MUSE, ``news`` or ``books``.

    Raises:
      UserError: one is missing or malformed.
    """
    rows = {name: list(json_rows(folder / file)) for name, file in FILES.items()}
    private = {side: folder / "privleak" / f"{side}.json" for side in SIDES}
    if not any(path.exists() for path in private.values()):
        private = {}
    return MuseData(
        [_pair(at, row, "prompt", "gt") for at, row in rows["verbmem"]],
        _with_examples(rows["forget"], rows["forget_examples"]),
        _with_examples(rows["retain"], rows["retain_examples"]),
        {side: json_texts(path) for side, path in private.items()},
    )


def _pair(where: str, row: dict[str, Any], asked: str, gold: str) -> tuple[str, str]:
    return text_field(row, asked, where), text_field(row, gold, where)


def _with_examples(
    rows: list[tuple[str, dict[str, Any]]], examples: list[tuple[str, dict[str, Any]]]
) -> list[tuple[str, str]]:
    """Return questions behind answered examples, and their gold answers."""
    known, pairs = (
        [_pair(where, row, "question", "answer") for where, row in part]
        for part in (examples, rows)
    )
    shown = "".join(f"Question: {q}\nAnswer: {answer}\n\n" for q, answer in known)
    return [(f"{shown}Question: {question}\nAnswer:", gold) for question, gold in pairs]


def before(text: str, ends: tuple[str, ...] = ENDS) -> str:
    """Return the text up to the first of ``ends``, without white space around it."""
    places = [text.index(end) for end in ends if end in text]
    return text[: min(places, default=len(text))].strip()


def muse_log(judge: Judge, data: MuseData, progress: Progress) -> dict[str, Table]:
    """Return VerbMem and KnowMem, which are ROUGE-L F1, and membership attacks."""
    sets = {
        "verbmem": (data.verbatim, VERBATIM, ()),
        "knowmem_f": (data.forget, KNOWLEDGE, ENDS),
        "knowmem_r": (data.retain, KNOWLEDGE, ENDS),
    }
    out: dict[str, Table] = {}
    for name, (pairs, limit, ends) in sets.items():
        asked, gold = [prompt for prompt, _ in pairs], [text for _, text in pairs]
        with progress.stage(name, 1):
            whole, _ = judge.said(name, asked, limit)
        said = [before(text, ends) for text in whole]
        scores = rouge_scores(said, gold)
        rows = [
            {**score, "ground_truth": right, "generation": text}
            for score, right, text in zip(scores, gold, said, strict=True)
        ]
        mean = sum(row["rougeL_f1"] for row in scores) / len(scores)
        out[f"{name}_ROUGE"] = by_index(mean, rows)
        out[f"{name}_text_quality"] = quality_table(said, [True] * len(said))
    if not data.private:
        progress.say("there is no privleak/*.json, so no membership attacks, PrivLeak")
        return out
    return out | attacks_log(judge, data.private, progress)


def attacks_log(
    judge: Judge, texts: dict[str, list[str]], progress: Progress
) -> dict[str, Table]:
    """Return every attack on whole texts, without prompt and end of text.

    PrivLeak compares the AUC with a retrained model's, see `evaluation.mia`.
    """
    context = judge.model.context or LONGEST + 1
    longest = min(LONGEST, context - 1)
    found = {}
    for side, rows in texts.items():
        tokens, cut = tokenise_whole(rows, judge.model.tokenizer, longest, MULTIPLE)
        if cut:
            many = f"{cut} of {len(rows)} {side} texts are longer than {longest} tokens"
            progress.say(f"privleak: {many}, what is beyond does not count")
        given = Given(tokens, rows, has_end=False)
        with progress.stage(f"privleak {side}", 1):
            own = [rows, longest]
            found[side] = judge.attacked(f"privleak_{side}", own, given)
    return {
        f"mia_{name}": attack_table({side: own[name] for side, own in found.items()})
        for name in judge.attacks
    }
