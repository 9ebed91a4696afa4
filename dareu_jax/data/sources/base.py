"""What every source is given, what it yields, and how texts are read and divided."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dareu_jax.data.records import Record
from dareu_jax.errors import UserError

Row = tuple[str, Record]
"""A split name, ``train`` or ``test``, and a record of it."""

Source = Callable[[Any, Path], Iterator[Row]]
"""Yield every row, or raises `UserError`.

Its arguments are an instance of the options class that the source registered, and a
folder in which it may keep downloads.
"""


def read_text(path: Path, contents: str, key: str = "corpus.path") -> str:
    """Return the text of a file; raise `UserError` where it cannot be read as UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        named = f"{key}: " if key else ""
        raise UserError(
            f"{named}cannot read {str(path)!r}: {reason}; give an existing file of "
            f"{contents}"
        ) from error


def json_rows(
    path: Path, key: str = "corpus.path"
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ``(place, object)`` of a file of one object per line, or of one array.

    The place is ``file:line``, or ``file, row n`` of an array; errors name ``key``.
    """
    text = read_text(path, "JSON objects, one per line or in an array", key)
    if text.lstrip().startswith("["):
        for n, row in enumerate(_loaded(text, str(path), "one array of objects")):
            yield f"{path}, row {n}", _object(row, f"{path}, row {n}")
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}:{number}"
            yield where, _object(_loaded(line, where, "one object per line"), where)


def json_texts(path: Path) -> list[str]:
    """Return the texts of one JSON array; raise `UserError` where there is none."""
    contents = "a JSON array of texts"
    rows = _loaded(read_text(path, contents), str(path), contents)
    if not isinstance(rows, list) or not all(isinstance(row, str) for row in rows):
        raise UserError(f"{path}: must be {contents}")
    if not rows:
        raise UserError(f"{path}: must be a JSON array of at least one text")
    places = [f"{path}, row {n}" for n in range(len(rows))]
    return [text_field({"text": x}, "text", where) for where, x in zip(places, rows)]


def _loaded(text: str, where: str, contents: str) -> Any:
    """Return the JSON value in ``text``; raise `UserError` where it is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error}); write {contents}") from error


def _object(value: Any, where: str) -> dict[str, Any]:
    """Return a value that is a JSON object; raise `UserError` for any other."""
    if not isinstance(value, dict):
        raise UserError(f"{where}: not a JSON object but {type(value).__name__}")
    return value


def text_field(row: dict[str, Any], name: str, where: str) -> str:
    """Return the text in field `name`; raise `UserError` where it is none or empty."""
    if name not in row:
        found = ", ".join(row) or "nothing"
        raise UserError(f"{where}: field {name!r} is missing; found: {found}")
    value = row[name]
    if not isinstance(value, str):
        kind = type(value).__name__
        raise UserError(f"{where}: field {name!r} must be a string, not {kind}")
    if not value.strip():
        raise UserError(f"{where}: field {name!r} is empty; fill it or drop the line")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise UserError(f"{where}: field {name!r} holds half of a Unicode letter")
    return value


def completion(words: Sequence[str], prompt_words: int) -> tuple[str, str]:
    """Return the first words as a prompt and the rest as its response."""
    return " ".join(words[:prompt_words]), " ".join(words[prompt_words:])
