"""Means and spreads over the seeds of a run."""

import statistics
from collections.abc import Iterable, Mapping
from typing import Any


def summarise(seeds: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return ``models`` and ``tow``: the means over seeds of the entries per seed.

    A value that only some seeds have is averaged over those; `gaps` names them.
    """
    each = seeds.values()
    return {
        part: {
            name: {key: _mean(_values(each, part, name, key)) for key in keys}
            for name, keys in keys_of(seeds, part).items()
        }
        for part in ("models", "tow")
    }


def spread(
    results: Mapping[str, Any], name: str, metric_name: str
) -> tuple[float | None, float | None]:
    """Return the mean over seeds and the standard deviation (ddof = 1).

    ``tow_rouge`` and ``tow_probability`` are read from the ``tow`` entries. The
    deviation is None for one seed; both are None when no seed has the value.
    """
    values = seed_values(results, name, metric_name)
    return _mean(values), statistics.stdev(values) if len(values) > 1 else None


def seed_values(results: Mapping[str, Any], name: str, metric_name: str) -> list[float]:
    """Return the value of every seed that has one, else the stored mean, else []."""
    is_tow, key = metric_name.startswith("tow_"), metric_name.removeprefix("tow_")
    part = "tow" if is_tow else "models"
    values = _values(results.get("seeds", {}).values(), part, name, key)
    return values or _values([results], part, name, key)


def keys_of(
    entries: Mapping[str, Mapping[str, Any]], part: str
) -> dict[str, dict[str, None]]:
    """Return every model name and its keys, both in order of appearance."""
    found: dict[str, dict[str, None]] = {}
    for entry in entries.values():
        for name, values in entry.get(part, {}).items():
            found.setdefault(name, {}).update(dict.fromkeys(values))
    return found


def _mean(values: list[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _values(
    entries: Iterable[Mapping[str, Any]], part: str, name: str, key: str
) -> list[float]:
    found = (entry.get(part, {}).get(name, {}).get(key) for entry in entries)
    return [float(value) for value in found if value is not None]
