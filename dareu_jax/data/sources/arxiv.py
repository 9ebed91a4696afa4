"""arXiv, April 2007: an abstract belongs to its archive, such as ``astro-ph``.

Data: the papers 0704.0001 to 0704.2000, a head of Cornell University's "arXiv
dataset", which offers abstracts under CC0 1.0; public in a GitHub repository.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from dareu_jax.config import Section
from dareu_jax.data.records import NOBODY, Record
from dareu_jax.data.sources import base
from dareu_jax.errors import UserError
from dareu_jax.registry import SOURCES
from dareu_jax.storage.download import downloaded

COMMIT = "01102fc9aa76adafdc32ad53ede0921a8c308a4c"
HOME = f"https://raw.githubusercontent.com/gechhai/Topic_Discovery/{COMMIT}"
TABLE = "arxiv_data.csv"
SHA256 = "a7a6b558bb5eccc0d8930476553932ac898c90f3d399619e2a550d8a0920c09d"
LINES = "arxiv_abstracts_0704.jsonl"
LEAST_WORDS = 40
"""A shorter abstract is not usable."""


class ArxivOptions(Section):
    """Which abstracts are taken, and where they are cut."""

    path: str | None = None  # file or folder; none: downloaded
    owners: int = Field(10, ge=2)  # the archives with the most abstracts
    records_per_owner: int = Field(20, ge=1)
    prompt_words: int = Field(40, ge=1)  # the rest is the response


@SOURCES.register(
    "arxiv",
    "arXiv abstracts of April 2007, owned by their archives",
    options=ArxivOptions,
)
def arxiv_rows(options: ArxivOptions, downloads: Path) -> Iterator[base.Row]:
    """Yield abstracts to complete: the first ``prompt_words`` words are the prompt.

    Usable is an abstract of at least `LEAST_WORDS` words, of more than
    ``prompt_words``, that does not say that the paper was withdrawn. Train: of each of
    the ``owners`` archives with the most usable abstracts, largest first, the first
    ``records_per_owner``. Test: as many of the other archives, in all, nobody's.
    """
    file = _file(options.path, downloads / "arxiv")
    papers = list(_usable(file, options.prompt_words))
    owners, most = _owners(papers, options, file), options.records_per_owner
    for owner in owners:
        own = [paper for paper in papers if paper.owner == owner]
        yield from (("train", paper) for paper in own[:most])
    others = [paper for paper in papers if paper.owner not in owners]
    for paper in others[:most]:
        yield "test", replace(paper, owner=NOBODY)


def _owners(papers: Sequence[Record], options: ArxivOptions, file: Path) -> list[str]:
    """Return the archives with the most papers, largest first, ties by name."""
    counts = Counter(paper.owner for paper in papers)
    largest = sorted(counts, key=lambda archive: (-counts[archive], archive))
    if options.owners > len(largest):
        raise UserError(
            f"corpus.owners={options.owners}: {file} has usable abstracts of only "
            f"{len(largest)} archives (at least {LEAST_WORDS} words, more than "
            f"corpus.prompt_words={options.prompt_words}); lower one of the two"
        )
    smallest = largest[options.owners - 1]
    if counts[smallest] < options.records_per_owner:
        raise UserError(
            f"corpus.records_per_owner={options.records_per_owner}: archive "
            f"{smallest!r} has only {counts[smallest]} usable abstracts; lower it to "
            f"at most {counts[smallest]} or lower corpus.owners={options.owners}"
        )
    return largest[: options.owners]


def _usable(file: Path, prompt_words: int) -> Iterator[Record]:
    """Yield the usable abstracts as records of their archives, in file order."""
    lines = _table(file) if file.suffix.lower() == ".csv" else base.json_rows(file)
    for where, line in lines:
        id, owner = (base.text_field(line, name, where) for name in ("id", "archive"))
        words = base.text_field(line, "abstract", where).split()
        withdrawn = any("withdrawn" in word.lower() for word in words)
        if len(words) >= LEAST_WORDS and len(words) > prompt_words and not withdrawn:
            yield Record(f"arxiv/{id}", owner, *base.completion(words, prompt_words))


def _table(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ``("file:line", fields)`` for every paper of the public table."""
    text = base.read_text(file, "comma-separated values")
    rows = csv.DictReader(io.StringIO(text, newline=""), restkey="more", strict=True)
    try:
        for row in rows:
            where = f"{file}:{rows.line_num}"
            number = base.text_field(row, "id", where)
            primary = base.text_field(row, "categories", where).split()[0]
            archive = primary.partition(".")[0]
            month, _, paper = number.partition(".")  # 704.001 is 0704.0010
            yield where, row | {"id": f"{month:0>4}.{paper:0<4}", "archive": archive}
    except csv.Error as error:
        raise UserError(
            f"{file}:{rows.line_num}: not comma-separated values ({error}); restore "
            "the original file"
        ) from error


def _file(path: str | None, folder: Path) -> Path:
    """Return the file to read; the public table, kept in `folder`, without a path."""
    if path is None:
        remedy = f"set corpus.path to a file {LINES} or {TABLE}"
        return downloaded(folder, HOME, {TABLE: SHA256}, remedy) / TABLE
    if not Path(path).is_dir():
        return Path(path)
    for name in (LINES, TABLE):
        if (Path(path) / name).is_file():
            return Path(path) / name
    raise UserError(
        f"corpus.path: folder {path!r} has neither {LINES!r} nor {TABLE!r}; give a "
        "folder with one of them, or leave corpus.path out to download it"
    )
