"""Logs of an evaluation, row by row, in every format that is known."""

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dareu_jax.errors import UserError
from dareu_jax.evaluation.logs.formats import LIMITS, Part, Source, layout
from dareu_jax.evaluation.metrics.utility import normalised_probability

Array = np.ndarray
SLACK = 1e-5
"""How far float32 may have carried a value out of its range."""
HIGHEST = dict.fromkeys(
    ("probability", "wrong_probability", "rouge", "unfinished", "extraction"), 1.0
)
PER_ANSWER = ("wrong_loss", "wrong_probability")
TEXTS = ("generation", "gold")


@dataclass(frozen=True)
class SetLog:
    """What a log holds on N questions; None: it does not hold that.

    NaN, or None among texts: the log holds that of other rows, but not of this one.

    Attributes:
      rows: N names of rows.
      probability: ``[N]`` length-normalised, of the gold answer; of real authors and
        world facts the share among the right and the wrong answers.
      rouge: ``[N]`` ROUGE-L recall.
      right_loss: ``[N]`` nats per token of the right answer of the truth ratio.
      wrong_loss: ``[N, K]`` nats per token of its wrong answers.
      generation, gold: N texts.
      unfinished: ``[N]``, 1 where the answer was cut off at the length limit.
      limit, gold_tokens: ``[N]`` that limit, and the right answer's tokens.
      extraction: ``[N]`` extraction strengths.
      skipped: metric in the log -> number of rows without a finite value.
    """

    rows: tuple[str, ...]
    probability: Array | None = None
    rouge: Array | None = None
    right_loss: Array | None = None
    wrong_loss: Array | None = None
    generation: tuple[str | None, ...] | None = None
    gold: tuple[str | None, ...] | None = None
    unfinished: Array | None = None
    limit: Array | None = None
    gold_tokens: Array | None = None
    extraction: Array | None = None
    skipped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Attack:
    """Scores of a membership attack by row, higher for less likely text; NaN: none."""

    forget: Mapping[str, float]
    holdout: Mapping[str, float]

    @property
    def skipped(self) -> dict[str, int]:
        """Return the number of rows without a finite score by split, zeros left out."""
        sides = {"forget": self.forget, "holdout": self.holdout}
        counts = {k: sum(map(math.isnan, x.values())) for k, x in sides.items()}
        return {split: count for split, count in counts.items() if count}

    @property
    def is_whole(self) -> bool:
        """Return whether both splits have a score, so that there is an AUC."""
        sides = (self.forget, self.holdout)
        return all(not all(map(math.isnan, x.values())) for x in sides)


@dataclass(frozen=True)
class EvalLog:
    """One model's log: file, format, sets of questions by name, attacks by name.

    ``skipped``: set or attack -> metric or split -> rows without a finite value.
    """

    path: Path
    format: str
    sets: Mapping[str, SetLog]
    attacks: Mapping[str, Attack]
    skipped: Mapping[str, Mapping[str, int]]

    @property
    def extraction(self) -> Array | None:
        """Return extraction strengths of the forget rows ``[N]``."""
        return self.sets["forget"].extraction if "forget" in self.sets else None


def read_log(path: Path, partial: bool = False) -> EvalLog:
    """Read a log; its ``format`` says what it was taken for.

    Rows of which a metric is null, NaN, infinite or missing are counted, not refused;
    an attack without any score is left out.

    Raises:
      UserError: not JSON, no known format, a missing metric, values that are no
        numbers, out of range, or rows that are not the same in all metrics of a set.
      OSError: a file that cannot be read.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    parts = layout(tree, path)
    found = {k: read_set(part, path, partial) for k, part in parts.sets.items()}
    attacks = {
        name: Attack(
            *(scores(f"{path}: mia_{name}, {split}", rows) for split, rows in x.items())
        )
        for name, x in parts.attacks.items()
        if not (partial and is_without_rows(x))
    }
    sets = {name: one for name, one in found.items() if one is not None}
    if not (sets or attacks):
        raise UserError(f"{path} has no metric that score-logs knows ({parts.format})")
    counts = {name: one.skipped for name, one in sets.items()}
    counts |= {f"mia_{name}": one.skipped for name, one in attacks.items()}
    skipped = {name: metrics for name, metrics in counts.items() if metrics}
    whole = {name: one for name, one in attacks.items() if one.is_whole}
    return EvalLog(path, parts.format, sets, whole, skipped)


def is_without_rows(attack: Mapping[str, Any]) -> bool:
    """Return whether a split of an attack is null or empty."""
    return any(table is None or table == {} for table in attack.values())


def read_set(part: Part, path: Path, partial: bool) -> SetLog | None:
    """Return the columns of a set, all over the same rows; None: it has no column."""
    names: tuple[str, ...] = ()
    first = ""
    columns: dict[str, Any] = {}
    lacking: dict[str, set[str]] = {}
    for column, source in part.columns.items():
        table = part.tables.get(source.metric)
        if table is None or table == {}:
            if not (partial or column in part.may_lack):
                raise UserError(
                    f"{path} has no rows of {source.metric}; --partial scores the rest"
                )
            continue
        where = f"{path}: {source.metric}"
        table = checked_rows(where, table)
        names, first = names or tuple(table), first or source.metric
        same_rows(where, table, names, first)
        ordered = {name: table[name] for name in names}
        columns[column] = read_column(where, column, source, ordered)
        if column not in LIMITS:
            gone = without(columns[column], names)
            lacking.setdefault(source.metric, set()).update(gone)
    if not names:
        return None
    if "wrong_probability" in part.columns:
        wrong, right = (columns.pop(f"{x}probability", None) for x in ("wrong_", ""))
        if right is not None and wrong is not None:
            columns["probability"] = normalised_probability(right, wrong)
    held = {k: x for k, x in columns.items() if len(without(x, names)) < len(names)}
    skipped = {metric: len(rows) for metric, rows in lacking.items() if rows}
    return SetLog(rows=names, skipped=skipped, **held)


def without(column: Any, names: tuple[str, ...]) -> list[str]:
    """Return the names of the rows of which a column of numbers has none."""
    if not isinstance(column, np.ndarray):
        return []
    gone = np.isnan(column).reshape(len(names), -1).any(axis=1)
    return [names[row] for row in np.flatnonzero(gone)]


def checked_rows(where: str, table: Any) -> dict[str, Any]:
    """Return a metric's rows by name; raises `UserError` where there are none."""
    if not isinstance(table, dict):
        raise UserError(f"{where} is {kind(table)}, not an object of rows")
    if not table:
        raise UserError(f"{where} has no rows; --partial scores the rest")
    return table


def same_rows(
    where: str, table: Mapping[str, Any], names: tuple[str, ...], other: str
) -> None:
    """Raise `UserError` where ``table`` has other rows than ``other``'s ``names``."""
    if table.keys() == set(names):
        return
    odd = sorted(table.keys() ^ set(names), key=lambda name: (len(name), name))
    raise UserError(
        f"{where} has other rows than {other}: {len(table)} against {len(names)}, "
        f"row {odd[0]!r} is in one alone"
    )


def read_column(
    where: str, column: str, source: Source, rows: Mapping[str, Any]
) -> Any:
    """Return ``[N]`` or ``[N, K]`` numbers, NaN where missing, or N texts, or None.

    None: the column has something that is no text, or nothing else.
    """
    values = {name: inside(row, source.field) for name, row in rows.items()}
    if column in TEXTS:
        texts = tuple(values.values())
        readable = all(text is None or isinstance(text, str) for text in texts)
        return texts if readable and {*texts} != {None} else None
    place = where if source.field is None else f"{where}, {source.field}"
    found: list[Any]
    if column in PER_ANSWER:
        there = {n: v for n, v in values.items() if not is_missing(v)}
        counts = {len(v) if isinstance(v, list) else 0 for v in there.values()}
        if len(counts) > 1 or 0 in counts:
            raise UserError(f"{place}: every row needs a list of as many wrong answers")
        gone = [None] * max(counts, default=1)
        lists = {n: there.get(n, gone) for n in values}
        found = [[number(place, n, x) for x in v] for n, v in lists.items()]
    else:
        found = [number(place, name, x) for name, x in values.items()]
    array = np.asarray(found, np.float64)
    if source.loss:
        array = np.exp(-in_range(place, array, math.inf))
    return in_range(place, array, HIGHEST.get(column, math.inf))


def inside(cell: Any, field: str | int | None) -> Any:
    """Return ``cell[field]``, or None where there is nothing."""
    if field is None:
        return cell
    try:
        return cell[field]
    except (KeyError, IndexError, TypeError):
        return None


def number(where: str, row: str, value: Any) -> float:
    """Return the value as a float, NaN where it is missing or not finite.

    Raises:
      UserError: it is something else than a number.
    """
    if value != [] and is_missing(value):
        return math.nan
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise UserError(f"{where}: row {row!r} has {kind(value)}, not a number")
    return float(value)


def is_missing(value: Any) -> bool:
    """Return whether a value is null, an empty list, or a number that is not finite."""
    if isinstance(value, float | int) and not isinstance(value, bool):
        return not abs(value) <= sys.float_info.max
    return value is None or value == []


def in_range(where: str, values: Array, high: float) -> Array:
    """Return values in [0, ``high``]; raises `UserError` where one is far from it."""
    if (far := values[(values < -SLACK) | (values > high + SLACK)]).size:
        raise UserError(f"{where}: {far[0]:g} is outside [0, {high:g}]")
    return np.clip(values, 0.0, high)


def scores(where: str, table: Any) -> dict[str, float]:
    """Return scores of an attack by row; raises `UserError` where one is no number."""
    rows = checked_rows(where, table)
    return {name: number(where, name, inside(x, "score")) for name, x in rows.items()}


def kind(value: Any) -> str:
    """Return a word or two that say what a value is."""
    if value is None or isinstance(value, float):
        return "null" if value is None else str(value)
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    return names.get(type(value), "a number")


def check_comparable(log: EvalLog, reference: EvalLog) -> None:
    """Raise `UserError` where the two logs are not of the same rows and questions."""
    for name in log.sets.keys() & reference.sets.keys():
        one, other = log.sets[name], reference.sets[name]
        table = dict.fromkeys(one.rows)
        same_rows(f"{log.path}: {name}", table, other.rows, str(reference.path))
        if one.gold is None or other.gold is None:
            continue
        gold = dict(zip(other.rows, other.gold, strict=True))
        for row, text in zip(one.rows, one.gold, strict=True):
            theirs = gold[row]
            if text is None or theirs is None:
                continue
            if text.split() != theirs.split():
                raise UserError(
                    f"{log.path}: {name}, row {row!r} has another gold answer than "
                    f"in {reference.path}; the two were evaluated on different data"
                )
    for name in log.attacks.keys() & reference.attacks.keys():
        for split in ("forget", "holdout"):
            ours, theirs = (getattr(x.attacks[name], split) for x in (log, reference))
            where = f"{log.path}: mia_{name}, {split}"
            same_rows(where, ours, tuple(theirs), str(reference.path))
