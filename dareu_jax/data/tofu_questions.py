"""Questions that a model is judged on: gold answers, a right and some wrong ones."""

from pathlib import Path
from typing import Any, NamedTuple

from dareu_jax.data.sources.base import json_rows, text_field
from dareu_jax.data.sources.tofu import HOME
from dareu_jax.errors import UserError
from dareu_jax.storage.download import downloaded

FORGET_SETS = ("forget01", "forget05", "forget10")
REWORDED = ("forget10", "retain")
"""The sets with paraphrased questions: of the last 20 authors, and the first 20."""
SHA256 = {
    "forget01": "d8d8a80bd25e853b52fad0e3301d86fa4db6bc2b665cd79ea937346186a0944a",
    "forget05": "7596c863a3f7eafb551a167363826f71a7327f28617a0a533fed06108a50ccdb",
    "forget10": "6fbcb946c57ea1d7b2124cea0e61bf3b5409d1bc10d02368f090109450ed73c7",
    "retain": "fc69f33bad70d3dca65920bdb54380039e3e8872dd16bbae20c1a839b99533fb",
    "real_authors": "a23255383ac75a5fbe5acd57622a03fb9c368954fd7b2428afa152b784d9533a",
    "world_facts": "0e171838040d0ec94b1ce248d891508e85e3b77344370077caa27b61898eb3e1",
    "holdout01": "58762921142be29a85e67002e846f3a14459432c7113252bf28350bd2a9bd117",
    "holdout05": "44af7af632f8bee87b3bd43ab421fa3429935002795a237246ed501e36ee8dee",
    "holdout10": "28bd4a40b679206ff87f0605d2ac637014c5e4cbac48cb59f79ccb3bffd5d4a8",
}


class Question(NamedTuple):
    """One question."""

    prompt: str  # as asked
    answer: str  # gold
    right: str  # in the words of the wrong ones; it may be `answer`
    wrong: tuple[str, ...]  # of the same form
    paraphrased: str = ""  # the question in other words


class TofuQuestions(NamedTuple):
    """TOFU's four sets of questions, and texts that no model was trained on."""

    forget: tuple[Question, ...]
    retain: tuple[Question, ...]
    real_authors: tuple[Question, ...]
    world_facts: tuple[Question, ...]
    holdout: tuple[Question, ...]


def tofu_questions(
    folder: Path | None, forget: str, downloads: Path, first: int | None = None
) -> TofuQuestions:
    """Read the evaluation sets of TOFU (Maini et al. 2024, arXiv 2401.06121).

    Without a ``folder`` of TOFU's files they are downloaded. ``forget`` is one of
    `FORGET_SETS`; of each set the ``first`` rows are read (the original code: 300).
    """
    if forget not in FORGET_SETS:
        raise UserError(f"--forget {forget}: give one of {', '.join(FORGET_SETS)}")
    holdout = forget.replace("forget", "holdout")
    names = (forget, "retain", "real_authors", "world_facts", holdout)
    remedy = f"give --data, a folder that holds {', '.join(map(_file, names))}"
    if folder is None:
        folder = _downloaded(downloads / "tofu", names, remedy)
    return TofuQuestions(*(_read(folder / _file(name))[:first] for name in names))


def tofu_paraphrases(folder: Path | None, downloads: Path) -> dict[str, str]:
    """Return TOFU's questions, each with its ``paraphrased_question``."""
    if folder is None:
        place = downloads / "tofu"
        remedy = f"put {', '.join(map(_file, REWORDED))} into {place}"
        folder = _downloaded(place, REWORDED, remedy)
    paths = sorted(folder.glob("*_perturbed.json"))
    rows = [row for path in paths for _, row in json_rows(path)]
    pairs = [(row.get("question"), row.get("paraphrased_question")) for row in rows]
    return {a: b for a, b in pairs if isinstance(a, str) and isinstance(b, str)}


def _file(name: str) -> str:
    return f"{name}.json" if name.startswith("holdout") else f"{name}_perturbed.json"


def _read(path: Path) -> tuple[Question, ...]:
    if not path.is_file():
        raise UserError(
            f"--data {path.parent}: no {path.name} there; give TOFU's folder, or leave "
            "--data out to download it"
        )
    return tuple(_question(where, row) for where, row in json_rows(path))


def _question(where: str, row: dict[str, Any]) -> Question:
    def text(name: str, absent: str) -> str:
        return text_field(row, name, where) if name in row else absent

    answer = text_field(row, "answer", where)
    right = text("paraphrased_answer", answer)
    wrong = row.get("perturbed_answer", [])
    if not isinstance(wrong, list) or not all(isinstance(x, str) for x in wrong):
        raise UserError(f"{where}: field 'perturbed_answer' must be a list of texts")
    other, asked = text("paraphrased_question", ""), text_field(row, "question", where)
    return Question(asked, answer, right, tuple(wrong), other)


def _downloaded(folder: Path, names: tuple[str, ...], remedy: str) -> Path:
    files = {_file(name): SHA256[name] for name in names}
    return downloaded(folder, HOME, files, remedy)
