"""A user's own JSON: records to train on, records to attribute, queries.

The same rules hold for all three. A file has one JSON object on every line that is
not blank, or is one array of objects. The ``id`` of an object is text or a whole
number, and no other's; without one it is called ``line-N``, N being its line in the
file, or ``row-N``, N being its place in the array. Other fields may be there.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dareu_jax.config import Section
from dareu_jax.data.ownership import record_of
from dareu_jax.data.records import NOBODY, Record
from dareu_jax.data.sources.base import Row, json_rows, text_field
from dareu_jax.errors import UserError
from dareu_jax.registry import SOURCES

SPLITS = ("train", "test")
LARGEST = float(np.finfo(np.float32).max)
"""No weight is larger."""


class JsonlOptions(Section):
    """Where the records are."""

    path: str | None = None


@SOURCES.register(
    "jsonl",
    "your own file: owner, prompt, response in each object",
    options=JsonlOptions,
)
def jsonl_rows(options: JsonlOptions, downloads: Path) -> Iterator[Row]:
    """Yield the rows of the file ``options.path``, see `read_rows`."""
    del downloads
    if options.path is None:
        raise UserError("corpus.path is not set; source 'jsonl' needs a file")
    yield from read_rows(options.path, "corpus.path")


def read_rows(path: Path | str, key: str) -> Iterator[Row]:
    """Yield the rows of a file of records to train on.

    Fields: ``owner`` (one name; null or empty: nobody's), ``prompt``, ``response`` and,
    optionally, ``id`` and ``split`` (``train`` or ``test``; train when absent).
    """
    trained = False
    for line in read_lines(path, key):
        split, owner = line.fields.get("split", "train"), line.fields.get("owner")
        if split not in SPLITS:
            raise UserError(
                f"{line.where}: split {split!r} is neither 'train' nor 'test'"
            )
        if isinstance(owner, list | dict):
            raise UserError(
                f"{line.where}: field 'owner' must be a string, not "
                f"{type(owner).__name__}: here a record has one owner"
            )
        line.text("prompt")
        trained = trained or split == "train"
        yield split, _record(line)
    if not trained:
        raise UserError(f"{key}: {str(path)!r} has no train records")


def read_owned(path: Path | str) -> tuple[Record, ...]:
    """Read records whose ``owner`` is a name, a list of names or null.

    An object ``{"alice": 0.7, "bob": 0.3}`` gives weights; a list shares equally.
    ``prompt`` may be empty or absent.
    """
    records = tuple(map(_record, read_lines(path)))
    if not records:
        raise UserError(f"{path} holds no records; write JSON objects, one per line")
    return records


@dataclass(frozen=True)
class Query:
    """A line of the queries: an answer, or a prompt that the model is to answer."""

    id: str
    prompt: str
    response: str | None


def read_queries(path: Path | str) -> list[Query]:
    """Read ``prompt`` and ``response`` of every line; without one the model answers."""
    queries = list(map(_query, read_lines(path)))
    if not queries:
        raise UserError(f"{path} holds no queries; write JSON objects, one per line")
    return queries


class Line(NamedTuple):
    """A line or row of a user's file: its place, its id, and the object in it."""

    where: str
    id: str
    fields: dict[str, Any]

    def text(self, name: str) -> str:
        """Return the text in field ``name``; raises what `text_field` does."""
        return text_field(self.fields, name, self.where)

    @property
    def prompt(self) -> str:
        """The prompt; absent, null or empty: "", which a template goes around."""
        prompt = self.fields.get("prompt")
        if prompt is None or (isinstance(prompt, str) and not prompt.strip()):
            return ""
        return self.text("prompt")


def read_lines(path: Path | str, key: str = "") -> Iterator[Line]:
    """Yield every line or row; raise `UserError` for a bad one, or a bad id."""
    seen: dict[str, str] = {}
    for where, fields in json_rows(Path(path), key):
        name = _id(fields, where)
        if name in seen:
            raise UserError(
                f"{where}: id {name!r} is already used at {seen[name]}; every line "
                "needs its own id"
            )
        seen[name] = where
        yield Line(where, name, fields)


def _id(fields: dict[str, Any], where: str) -> str:
    """Return the id of a line; absent or null: ``line-N``, or ``row-N`` of an array."""
    name = fields.get("id")
    if name is None:
        place, number = re.split(r"[ :]", where)[-2:]
        return f"row-{number}" if place == "row" else f"line-{number}"
    if isinstance(name, int) and not isinstance(name, bool):
        return str(name)
    return text_field(fields, "id", where)


def _record(line: Line) -> Record:
    """Return the record of a line, with the owner or owners that it names."""
    shares = _shares(line)
    return record_of(line.id, line.prompt, line.text("response"), shares)


def _query(line: Line) -> Query:
    """Return the query of a line."""
    if line.fields.get("response") is not None:
        return Query(line.id, line.prompt, line.text("response"))
    if not line.prompt:
        raise UserError(f"{line.where}: neither prompt nor response; give one of them")
    return Query(line.id, line.prompt, None)


def _shares(line: Line) -> tuple[tuple[str, float], ...]:
    """Return ``(owner, weight)`` of one line; none: nobody's."""
    owner = line.fields.get("owner", "absent")
    if owner in (None, NOBODY):
        return ()
    if not isinstance(owner, list | dict):
        return ((line.text("owner"), 1.0),)
    names = [text_field({"owner": one}, "owner", line.where) for one in owner]
    weights = [1.0 / len(names) for _ in names]
    if isinstance(owner, dict):
        weights = [_weight(value) for value in owner.values()]
    if not names or len(set(names)) < len(names) or not all(weights):
        raise UserError(
            f"{line.where}: owner {owner!r:.60} must be a name, a list of different "
            'names or weights above 0 such as {"alice": 0.7, "bob": 0.3}'
        )
    return tuple(zip(names, weights, strict=True))


def _weight(value: Any) -> float:
    """Return the weight, or 0 where it is no finite number above 0."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0.0 < value <= LARGEST else 0.0
