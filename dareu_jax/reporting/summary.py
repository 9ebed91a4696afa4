"""Means and deviations over seeds, and the text of one cell of a table."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from dareu_jax.evaluation.metrics.metric import Group, Metric
from dareu_jax.evaluation.seeds import keys_of, seed_values, spread
from dareu_jax.registry import METRICS

ORACLES = ("original", "retrained", "base")
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


def model_names(results: Mapping[str, Any]) -> list[str]:
    """Return the models present, see `order_models`."""
    return order_models(keys_of({"": results, **results.get("seeds", {})}, "models"))


def order_models(names: Iterable[str]) -> list[str]:
    """Return ``names``: the `ORACLES` first, then methods in the order of the run."""
    given = list(dict.fromkeys(names))
    first = [name for name in ORACLES if name in given]
    return first + [name for name in given if name not in ORACLES]


def with_one_method(names: Iterable[str]) -> list[str]:
    """Return ``names`` without the methods behind the first."""
    ordered = order_models(names)
    methods = [name for name in ordered if name not in ORACLES]
    return [name for name in ordered if name not in methods[1:]]


def columns(results: Mapping[str, Any], *groups: str) -> list[Metric]:
    """Return the registered metrics that a model has, group by group."""
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
        for name in keys_of(seeds, "models")
    }
    return [
        f"{name} is missing for seed {', '.join(absent)}; its row averages the rest."
        for name, absent in missing.items()
        if absent
    ]
