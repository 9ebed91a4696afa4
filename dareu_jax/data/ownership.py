"""Records of one owner, of several, or of nobody, for attribution alone."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dareu_jax.data.batches import owner_labels
from dareu_jax.data.records import NOBODY, Record


@dataclass(frozen=True)
class SharedRecord(Record):
    """A record of several owners, each with a weight; ``owner`` is the first."""

    shares: tuple[tuple[str, float], ...] = ()


def shares_of(record: Record) -> tuple[tuple[str, float], ...]:
    """Return ``(owner, weight)`` of everyone who owns a part of a record."""
    if isinstance(record, SharedRecord):
        return record.shares
    return () if record.owner == NOBODY else ((record.owner, 1.0),)


def owners_of(records: Sequence[Record]) -> tuple[str, ...]:
    """Return every owner in order of first appearance."""
    return tuple(dict.fromkeys(name for r in records for name, _ in shares_of(r)))


def ownership(records: Sequence[Record], owners: Sequence[str]) -> np.ndarray:
    """Return columns [N] int32, or weights [N, O] float32 if a record is shared."""
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
    """Return the records without an owner; co-owners keep their part of a record."""
    rest = []
    for record in records:
        held = shares_of(record)
        stay = tuple(share for share in held if share[0] != owner)
        if len(stay) == len(held):
            rest.append(record)
        elif stay:
            rest.append(record_of(record.id, record.prompt, record.response, stay))
    return tuple(rest)


def digests(records: Sequence[Record]) -> dict[str, str]:
    """Return 16 hexadecimal digits of what every owner has, `NOBODY` too.

    Prompts, responses and weights decide; order and ids do not. See `joined`.
    """
    totals: dict[str, int] = defaultdict(int)
    for record in records:
        for owner, weight in shares_of(record) or ((NOBODY, 1.0),):
            text = json.dumps([record.prompt, record.response, weight])
            totals[owner] += int(hashlib.sha256(text.encode()).hexdigest()[:16], 16)
    return {owner: _digits(total) for owner, total in totals.items()}


def joined(a: Mapping[str, str], b: Mapping[str, str]) -> dict[str, str]:
    """Return the `digests` of the records of both: sums modulo 2**64."""
    return {
        owner: _digits(sum(int(x.get(owner, "0"), 16) for x in (a, b)))
        for owner in {**a, **b}
    }


def _digits(total: int) -> str:
    """Return the sixteen hexadecimal digits of a sum modulo 2**64."""
    return f"{total % 2**64:016x}"


def record_of(
    name: str, prompt: str, response: str, shares: tuple[tuple[str, float], ...]
) -> Record:
    """Return a `Record` of one owner or of nobody, else a `SharedRecord`."""
    owner = shares[0][0] if shares else NOBODY
    if shares in ((), ((owner, 1.0),)):
        return Record(name, owner, prompt, response)
    return SharedRecord(name, owner, prompt, response, shares)
