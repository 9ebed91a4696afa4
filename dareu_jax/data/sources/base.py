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


def json_lines(
    path: Path, key: str = "corpus.path"
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ``("file:line", object)`` for every line with text; errors name ``key``."""
    text = read_text(path, "one JSON object per line", key)
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", _object(line, f"{path}:{number}")


def json_array(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return ``("file, row n", object)`` for every row of one JSON array of objects."""
    return _array(path, dict, "objects")


def json_texts(path: Path) -> list[str]:
    """Return the texts of one JSON array; raise `UserError` where there is none."""
    rows = _array(path, str, "texts")
    if not rows:
        raise UserError(f"{path}: must be a JSON array of at least one text")
    return [text_field({"text": text}, "text", where) for where, text in rows]


def _array(path: Path, kind: type, contents: str) -> list[tuple[str, Any]]:
    """Return ``("file, row n", row)``; rows that are not of ``kind`` are refused."""
    try:
        rows = json.loads(read_text(path, f"a JSON array of {contents}"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(rows, list) or not all(isinstance(row, kind) for row in rows):
        raise UserError(f"{path}: must be a JSON array of {contents}")
    return [(f"{path}, row {n}", row) for n, row in enumerate(rows)]


def _object(line: str, where: str) -> dict[str, Any]:
    """Return the JSON object that `line` holds."""
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UserError(
            f"{where}: not JSON ({error}); write one object per line"
        ) from error
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
