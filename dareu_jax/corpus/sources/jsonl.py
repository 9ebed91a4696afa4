"""A user's own records: one JSON object per line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dareu_jax.corpus.records import NOBODY, Record
from dareu_jax.corpus.sources.base import Row, SourceOptions, json_lines, text_field
from dareu_jax.errors import UserError
from dareu_jax.registry import SOURCES

SPLITS = ("train", "test")


@SOURCES.register("jsonl", "your own file: id, owner, prompt, response on each line")
def jsonl_rows(options: SourceOptions, downloads: Path) -> Iterator[Row]:
    """Yields the rows of the file ``options.path``.

    Fields: ``id``, ``owner`` (null or empty: nobody's), ``prompt``, ``response``
    and, optionally, ``split`` (``train`` or ``test``; train when absent).

    Raises:
      UserError: the first bad line, by file and line number.
    """
    del downloads
    if options.path is None:
        raise UserError("corpus.path is not set; source 'jsonl' needs a file")
    seen: dict[str, str] = {}
    trained = False
    for where, line in json_lines(Path(options.path)):
        split, record = _row(line, where)
        if record.id in seen:
            raise UserError(
                f"{where}: id {record.id!r} is already used at {seen[record.id]}; "
                "every record needs its own id"
            )
        seen[record.id] = where
        trained = trained or split == "train"
        yield split, record
    if not trained:
        raise UserError(f"corpus.path: {options.path!r} has no train records")


def _row(line: dict[str, Any], where: str) -> Row:
    """Returns one line as a split name and a record."""
    split = line.get("split", "train")
    if split not in SPLITS:
        raise UserError(f"{where}: split {split!r} is neither 'train' nor 'test'")
    record = Record(
        id=text_field(line, "id", where),
        owner=_owner(line, where),
        prompt=text_field(line, "prompt", where),
        response=text_field(line, "response", where),
    )
    return split, record


def _owner(line: dict[str, Any], where: str) -> str:
    """Returns the owner; null and empty text are `NOBODY`, absence is an error."""
    if line.get("owner", "absent") in (None, NOBODY):
        return NOBODY
    return text_field(line, "owner", where)
