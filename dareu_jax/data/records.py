"""Records, who owns them, and the split a withdrawal makes of them."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

from dareu_jax.errors import UserError, did_you_mean

OTHERS = "others"
"""The one owner that `merge_others` makes of all who stay."""
NOBODY = ""
"""The owner of shared knowledge: it is trained on, and nobody can withdraw it."""


@dataclass(frozen=True)
class Record:
    """One prompt with its response, and the owner of that text."""

    id: str
    owner: str
    prompt: str
    response: str


@dataclass(frozen=True)
class Corpus:
    """Every record: those a model is trained on, and those held out."""

    train: tuple[Record, ...]
    test: tuple[Record, ...]

    @property
    def fingerprint(self) -> str:
        """Return a hash of every record in order."""
        rows = [astuple(record) for record in (*self.train, *self.test)]
        text = json.dumps([len(self.train), rows], ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def owners(self) -> tuple[str, ...]:
        """Return the owners in order of first appearance in `train`."""
        return tuple(dict.fromkeys(r.owner for r in self.train if r.owner != NOBODY))


@dataclass(frozen=True)
class Split:
    """What a withdrawal makes of a corpus; no train record is in two parts."""

    forget: tuple[Record, ...]
    retain: tuple[Record, ...]
    test: tuple[Record, ...]


def split_by_owner(corpus: Corpus, forget: Sequence[str]) -> Split:
    """Return the split in which the owners in `forget` withdraw.

    ``retain`` is every train record of anyone else, `NOBODY` included; ``test`` is the
    held-out records of anyone else. Raises `UserError` unless some owners go, and some
    stay.
    """
    _check_forget(corpus.owners, forget)
    gone = frozenset(forget)
    return Split(
        forget=tuple(r for r in corpus.train if r.owner in gone),
        retain=tuple(r for r in corpus.train if r.owner not in gone),
        test=tuple(r for r in corpus.test if r.owner not in gone),
    )


def _check_forget(owners: tuple[str, ...], forget: Sequence[str]) -> None:
    """Raises `UserError` when `forget` is not a proper subset of `owners`."""
    if isinstance(forget, str):
        raise UserError(
            f"corpus.forget is the text {forget!r}; give a list of owners: [{forget}]"
        )
    if not forget:
        raise UserError(
            "corpus.forget names no owner; name at least one of the "
            f"{len(owners)} owners: {_some(owners)}"
        )
    for name in forget:
        if name not in owners:
            raise UserError(
                f"corpus.forget: unknown owner {name!r}{did_you_mean(name, owners)}; "
                f"the corpus has {len(owners)} owners: {_some(owners)}"
            )
    if set(forget) == set(owners):
        raise UserError(
            f"corpus.forget names all {len(owners)} owners, so no owner is left to "
            "retain; leave at least one out"
        )


def _some(owners: tuple[str, ...], limit: int = 8) -> str:
    """Return the first `limit` owners as text, with an ellipsis when more exist."""
    return ", ".join(owners[:limit]) + (", ..." if len(owners) > limit else "")


def merge_others(corpus: Corpus, keep: Sequence[str]) -> Corpus:
    """Return the corpus with every owner outside ``keep`` merged into one, `OTHERS`."""

    def rename(record: Record) -> Record:
        alone = record.owner in keep or record.owner == NOBODY
        return record if alone else replace(record, owner=OTHERS)

    return Corpus(tuple(map(rename, corpus.train)), tuple(map(rename, corpus.test)))


def shared_records(corpus: Corpus) -> list[tuple[Record, Record]]:
    """Return pairs of train records that are alike but owned by two owners, or nobody.

    Forgetting one of them is undone by retaining the other, so a caller reports them.
    """
    alike: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in corpus.train:
        known = alike[record.prompt, record.response]
        if all(record.owner != other.owner for other in known):
            known.append(record)
    return [(group[0], other) for group in alike.values() for other in group[1:]]
