"""Records of one owner, of several, or of nobody, for attribution alone."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dareu_jax.corpus.batches import owner_labels
from dareu_jax.corpus.records import NOBODY, Record
from dareu_jax.corpus.sources.base import json_lines, text_field
from dareu_jax.errors import UserError

LARGEST = float(np.finfo(np.float32).max)
"""No weight is larger."""


@dataclass(frozen=True)
class SharedRecord(Record):
    """A record of several owners; ``owner`` is the first.

    ``shares`` are ``(owner, weight)``, the weights as they are given.
    """

    shares: tuple[tuple[str, float], ...] = ()


def shares_of(record: Record) -> tuple[tuple[str, float], ...]:
    """Who owns a record and how much of it."""
    if isinstance(record, SharedRecord):
        return record.shares
    return () if record.owner == NOBODY else ((record.owner, 1.0),)


def owners_of(records: Sequence[Record]) -> tuple[str, ...]:
    """Every owner in order of first appearance."""
    return tuple(dict.fromkeys(name for r in records for name, _ in shares_of(r)))


def ownership(records: Sequence[Record], owners: Sequence[str]) -> np.ndarray:
    """Columns ``[N]`` int32, or weights ``[N, O]`` float32 where a record is shared.

    Raises:
      ValueError: a record's owner is not in ``owners``.
    """
    if not any(isinstance(record, SharedRecord) for record in records):
        return owner_labels(records, owners)
    place = {owner: column for column, owner in enumerate(owners)}
    unknown = set(owners_of(records)) - place.keys()
    if unknown:
        raise ValueError(f"owners without a column: {sorted(unknown)}")
    weights = np.zeros((len(records), len(owners)), np.float32)
    for row, record in enumerate(records):
        for name, weight in shares_of(record):
            weights[row, place[name]] = weight
    return weights


def without(records: Sequence[Record], owner: str) -> tuple[Record, ...]:
    """The records without the owner's: of a shared one the others keep their part."""
    rest = []
    for record in records:
        held = shares_of(record)
        stay = tuple(share for share in held if share[0] != owner)
        if len(stay) == len(held):
            rest.append(record)
        elif stay:
            rest.append(_record(record.id, record.prompt, record.response, stay))
    return tuple(rest)


def digests(records: Sequence[Record]) -> dict[str, str]:
    """What every owner (`NOBODY` too) has in the records, as 16 hexadecimal digits.

    Prompts, responses and the owner's weights decide; order and ids do not. The
    digest of two sets of records is `joined` from theirs.
    """
    totals: dict[str, int] = defaultdict(int)
    for record in records:
        for owner, weight in shares_of(record) or ((NOBODY, 1.0),):
            text = json.dumps([record.prompt, record.response, weight])
            totals[owner] += int(hashlib.sha256(text.encode()).hexdigest()[:16], 16)
    return {owner: _digits(total) for owner, total in totals.items()}


def joined(a: Mapping[str, str], b: Mapping[str, str]) -> dict[str, str]:
    """The `digests` of the records of both: sums modulo 2**64."""
    return {
        owner: _digits(sum(int(x.get(owner, "0"), 16) for x in (a, b)))
        for owner in {**a, **b}
    }


def _digits(total: int) -> str:
    """Sixteen hexadecimal digits of a sum modulo 2**64."""
    return f"{total % 2**64:016x}"


def read_owned(path: Path | str) -> tuple[Record, ...]:
    """Reads records whose ``owner`` is a name, a list of names or null.

    An object ``{"alice": 0.7, "bob": 0.3}`` gives weights; a list shares equally.
    ``prompt`` may be empty, ``id`` may be absent.

    Raises:
      UserError: the first bad line, by file and line number.
    """
    records: list[Record] = []
    seen: dict[str, str] = {}
    for where, line in lines_of(path):
        shares = _shares(line, where)
        name = id_of(line, f"line-{where.rsplit(':', 1)[1]}", where)
        if name in seen:
            raise UserError(f"{where}: id {name!r} is already used at {seen[name]}")
        seen[name] = where
        text = prompt_of(line, where), text_field(line, "response", where)
        records.append(_record(name, *text, shares))
    if not records:
        raise UserError(f"{path} holds no records; write one JSON object per line")
    return tuple(records)


def lines_of(path: Path | str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields ``("file:line", object)`` of a file that the command line names.

    Raises:
      UserError: no such file, not UTF-8, or a line that is not a JSON object.
    """
    try:
        yield from json_lines(Path(path))
    except UserError as error:
        raise UserError(str(error).removeprefix("corpus.path: ")) from None


def id_of(line: Mapping[str, Any], otherwise: str, where: str) -> str:
    """Returns the id, a string or a whole number; absent or null: ``otherwise``."""
    name = line.get("id")
    if name is None:
        return otherwise
    if isinstance(name, int) and not isinstance(name, bool):
        return str(name)
    return text_field(dict(line), "id", where)


def prompt_of(line: Mapping[str, Any], where: str) -> str:
    """Returns the prompt; absent, null or empty: "", which a template goes around."""
    prompt = line.get("prompt")
    if prompt is None or (isinstance(prompt, str) and not prompt.strip()):
        return ""
    return text_field(dict(line), "prompt", where)


def _record(
    name: str, prompt: str, response: str, shares: tuple[tuple[str, float], ...]
) -> Record:
    """A `Record` where it is nobody's or one owner's whole, else a `SharedRecord`."""
    owner = shares[0][0] if shares else NOBODY
    if shares in ((), ((owner, 1.0),)):
        return Record(name, owner, prompt, response)
    return SharedRecord(name, owner, prompt, response, shares)


def _shares(line: dict[str, Any], where: str) -> tuple[tuple[str, float], ...]:
    """Returns ``(owner, weight)`` of one line; none: nobody's."""
    owner = line.get("owner", "absent")
    if owner in (None, NOBODY):
        return ()
    if not isinstance(owner, list | dict):
        return ((text_field(line, "owner", where), 1.0),)
    names = [text_field({"owner": one}, "owner", where) for one in owner]
    if isinstance(owner, list):
        weights = [1.0 / len(names) for _ in names]
    else:
        weights = [_weight(value) for value in owner.values()]
    if not names or len(set(names)) < len(names) or not all(weights):
        raise UserError(
            f"{where}: owner {owner!r:.60} must be a name, a list of different names "
            'or weights above 0 such as {"alice": 0.7, "bob": 0.3}'
        )
    return tuple(zip(names, weights, strict=True))


def _weight(value: Any) -> float:
    """The weight, or 0 where it is no finite number above 0."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0.0 < value <= LARGEST else 0.0
