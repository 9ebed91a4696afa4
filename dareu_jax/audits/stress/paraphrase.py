"""The same questions in other words, where the data has them."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dareu_jax import data
from dareu_jax.data.sources.tofu import TofuOptions
from dareu_jax.data.tofu_questions import tofu_paraphrases
from dareu_jax.errors import UserError
from dareu_jax.parallel import agreed, is_first
from dareu_jax.runs.inputs import Inputs
from dareu_jax.storage.files import user_cache


class Paraphrases(NamedTuple):
    """Rows of the forget records, each with its question in other words."""

    rows: list[int]
    prompts: list[str]
    missing: str = ""


def paraphrases_of(inputs: Inputs) -> Paraphrases:
    """Held-out records with a forget record's answer, or TOFU's own paraphrases."""
    forget, options = inputs.split.forget, inputs.cfg.corpus.options()
    found = from_held_out(forget, inputs.corpus.test)
    if not found.rows and isinstance(options, TofuOptions):
        folder = None if options.path is None else Path(options.path)
        read = functools.partial(from_tofu, forget, folder, user_cache() / "downloads")
        found = Paraphrases(*agreed(read() if is_first() else ()))
    if found.rows or found.missing:
        return found
    missing = "no question of the forget records is there in other words"
    if isinstance(options, TofuOptions) and options.path is not None:
        missing += f"; put TOFU's *_perturbed.json files into {options.path}"
    return Paraphrases([], [], missing)


def from_held_out(
    forget: Sequence[data.Record], held_out: Sequence[data.Record]
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


def from_tofu(
    forget: Sequence[data.Record], folder: Path | None, downloads: Path
) -> Paraphrases:
    """Paraphrased questions of TOFU's files in ``folder``; None: downloaded."""
    try:
        known = tofu_paraphrases(folder, downloads)
    except UserError as error:
        return Paraphrases([], [], f"{error}, then delete prompts.json to try again")
    rows = [row for row, r in enumerate(forget) if r.prompt in known]
    return Paraphrases(rows, [known[forget[row].prompt] for row in rows])
