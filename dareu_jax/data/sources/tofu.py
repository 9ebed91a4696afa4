"""TOFU (Maini et al. 2024): 200 fictitious authors, 20 questions and answers each.

Data: ``locuslab/TOFU`` on Hugging Face, MIT licence.
"""

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from dareu_jax.config import Section
from dareu_jax.data.records import NOBODY, Record
from dareu_jax.data.sources.base import Row, json_rows, text_field
from dareu_jax.errors import UserError
from dareu_jax.registry import SOURCES
from dareu_jax.storage.download import downloaded

HOME = "https://huggingface.co/datasets/locuslab/TOFU/resolve/main"
RECORDS_PER_AUTHOR = 20
FULL = "full.json"
GENERAL = ("real_authors_perturbed.json", "world_facts_perturbed.json")
SHA256 = {
    FULL: "667baef2f26f781f1328701d8ea54bf25123ff22fb2d98574c96cd991cb54086",
    GENERAL[0]: "a23255383ac75a5fbe5acd57622a03fb9c368954fd7b2428afa152b784d9533a",
    GENERAL[1]: "0e171838040d0ec94b1ce248d891508e85e3b77344370077caa27b61898eb3e1",
}


class TofuOptions(Section):
    """Which of TOFU's authors are taken, and who is an owner."""

    path: str | None = None  # folder; none: downloaded
    authors_per_owner: int = Field(1, ge=1)  # neighbours that form one owner
    last_authors: int | None = Field(None, ge=2)  # none: all
    general_knowledge: bool = False  # train on the test facts too (from scratch)


@SOURCES.register(
    "tofu", "TOFU: 200 fictitious authors, 20 records each", options=TofuOptions
)
def tofu_rows(options: TofuOptions, downloads: Path) -> Iterator[Row]:
    """Yield TOFU's rows from the folder ``options.path``, downloaded when None.

    Train: row i of ``full.json`` belongs to author i // 20; ``authors_per_owner``
    neighbours form one owner; ``last_authors`` keeps the last so many authors under
    their original numbers. Test: real authors and world facts, nobody's, known to a
    model from its pre-training; ``general_knowledge`` puts them into train too, for a
    model trained from scratch.
    """
    if options.path is None:
        remedy = f"set corpus.path to a folder that holds {', '.join(SHA256)}"
        folder = downloaded(downloads / "tofu", HOME, SHA256, remedy)
    else:
        folder = Path(options.path)
    files = {name: _read(folder, name) for name in SHA256}
    yield from _owned(files[FULL], options, folder)
    for name in GENERAL:
        for number, (question, answer) in enumerate(files[name]):
            id = f"tofu/{name.removesuffix('_perturbed.json')}/{number:03d}"
            yield "test", Record(id, NOBODY, question, answer)
            if options.general_knowledge:
                yield "train", Record(f"{id}/train", NOBODY, question, answer)


def _owned(
    pairs: list[tuple[str, str]], options: TofuOptions, folder: Path
) -> Iterator[Row]:
    """Yield the train rows of the authors that are kept."""
    authors, rest = divmod(len(pairs), RECORDS_PER_AUTHOR)
    if rest or not authors:
        raise UserError(
            f"{folder / FULL}: {len(pairs)} records are not {RECORDS_PER_AUTHOR} for "
            "each author; restore the original file"
        )
    kept = authors if options.last_authors is None else options.last_authors
    if kept > authors:
        raise UserError(
            f"corpus.last_authors={kept} must be from 1 to {authors}, the number of "
            f"authors in {folder / FULL}"
        )
    for row in range((authors - kept) * RECORDS_PER_AUTHOR, len(pairs)):
        owner = _owner(row // RECORDS_PER_AUTHOR, options.authors_per_owner, authors)
        yield "train", Record(f"tofu/full/{row:04d}", owner, *pairs[row])


def _owner(author: int, authors_per_owner: int, authors: int) -> str:
    """Return ``author_007``, or ``authors_000_009`` for a group of neighbours."""
    if authors_per_owner == 1:
        return f"author_{author:03d}"
    first = author // authors_per_owner * authors_per_owner
    last = min(first + authors_per_owner, authors) - 1
    return f"authors_{first:03d}_{last:03d}"


def _read(folder: Path, name: str) -> list[tuple[str, str]]:
    """Return the (question, answer) pairs of one file."""
    if not (folder / name).is_file():
        raise UserError(
            f"corpus.path: folder {str(folder)!r} lacks {name!r}; give TOFU's folder, "
            "or leave corpus.path out to download it"
        )
    return [
        (text_field(line, "question", where), text_field(line, "answer", where))
        for where, line in json_rows(folder / name)
    ]
