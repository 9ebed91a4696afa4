"""Means and deviations over seeds, and the text of one cell of a table."""

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from dareu_jax.evaluation.metric import Group, Metric
from dareu_jax.registry import METRICS

ORACLES = ("original", "retrained")
"""Models that no unlearning method made."""
TABLES: dict[str, tuple[Group, ...]] = {
    "Forgetting and utility": ("rouge", "probability"),
    "Attribution and text quality": ("attribution", "quality"),
    "Further metrics": ("further",),
}
"""Groups of metrics by the title of their table."""
ARROWS = "↑ higher is better   ↓ lower is better   ≈ closer to retrained is better   "
TARGET = "the target is the row `retrained`"
NO_TARGET = "this run has no retrained model, so ≈ cannot be judged"
ABSENT = "–"


def summarise(seeds: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return ``models`` and ``tow``: the means over seeds of the entries per seed.

    A value that only some seeds have is averaged over those; `gaps` names them.
    """
    return {
        part: {
            name: {key: _mean(seeds, part, name, key) for key in keys}
            for name, keys in _keys(seeds, part).items()
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
    if not values:
        return None, None
    return (
        statistics.fmean(values),
        statistics.stdev(values) if len(values) > 1 else None,
    )


def seed_values(results: Mapping[str, Any], name: str, metric_name: str) -> list[float]:
    """Return the value of every seed that has one, else the stored mean, else []."""
    part, key = _place(metric_name)
    values = _values(results.get("seeds", {}).values(), part, name, key)
    return values or _values([results], part, name, key)


def model_names(results: Mapping[str, Any]) -> list[str]:
    """Return the models present, see `order_models`."""
    return order_models(_keys({"": results, **results.get("seeds", {})}, "models"))


def order_models(names: Iterable[str]) -> list[str]:
    """Return ``names``: the `ORACLES` first, then methods in the order of the run."""
    given = list(dict.fromkeys(names))
    first = [name for name in ORACLES if name in given]
    return first + [name for name in given if name not in ORACLES]


def columns(results: Mapping[str, Any], *groups: str) -> list[Metric]:
    """Return the registered metrics that a model has, group by group.

    Args:
      results: of ``results.json``; groups: see `Metric.group`, none: all of them.
    """
    names = model_names(results)
    known = [METRICS.get(name) for name in METRICS.names()]
    return [
        metric
        for group in groups or get_args(Group)
        for metric in known
        if metric.group == group and {"run", "beside"} & {*metric.of}
        if any(seed_values(results, name, metric.name) for name in names)
    ]


def legend(results: Mapping[str, Any]) -> str:
    """Return what the arrows mean, and what the target is."""
    known = "retrained" in model_names(results)
    return ARROWS + (TARGET if known else NO_TARGET)


def cell(results: Mapping[str, Any], name: str, shown: Metric) -> str:
    """Return ``mean``, ``mean±sd`` when there are several seeds, or a dash."""
    mean, deviation = spread(results, name, shown.name)
    if mean is None:
        return ABSENT
    places = decimals(shown)
    text = f"{mean:.{places}f}"
    return text if deviation is None else f"{text}±{deviation:.{places}f}"


def decimals(shown: Metric) -> int:
    """Return 3 for a share, 2 for a log-likelihood, 1 for a length."""
    if math.isinf(shown.high):
        return 1
    return 2 if math.isinf(shown.low) else 3


def gaps(results: Mapping[str, Any]) -> list[str]:
    """Return one sentence per model that some seeds do not have."""
    seeds = results.get("seeds", {})
    missing = {
        name: [seed for seed, entry in seeds.items() if name not in entry["models"]]
        for name in _keys(seeds, "models")
    }
    return [
        f"{name} is missing for seed {', '.join(absent)}; its row averages the rest."
        for name, absent in missing.items()
        if absent
    ]


def _keys(
    entries: Mapping[str, Mapping[str, Any]], part: str
) -> dict[str, dict[str, None]]:
    """Return every model name and its keys, both in order of appearance."""
    found: dict[str, dict[str, None]] = {}
    for entry in entries.values():
        for name, values in entry.get(part, {}).items():
            found.setdefault(name, {}).update(dict.fromkeys(values))
    return found


def _mean(
    seeds: Mapping[str, Mapping[str, Any]], part: str, name: str, key: str
) -> float | None:
    values = _values(seeds.values(), part, name, key)
    return statistics.fmean(values) if values else None


def _values(
    entries: Iterable[Mapping[str, Any]], part: str, name: str, key: str
) -> list[float]:
    found = (entry.get(part, {}).get(name, {}).get(key) for entry in entries)
    return [float(value) for value in found if value is not None]


def _place(metric_name: str) -> tuple[str, str]:
    if metric_name.startswith("tow_"):
        return "tow", metric_name.removeprefix("tow_")
    return "models", metric_name
