"""What a metric is and how its values are stored."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from dareu_jax.errors import UserError
from dareu_jax.registry import METRICS

if TYPE_CHECKING:
    from dareu_jax.evaluation.run_suite import Judged


Direction = Literal["higher", "lower", "closer"]
Scope = Literal["run", "beside", "log", "pair"]
Group = Literal["rouge", "probability", "attribution", "quality", "further"]
Values = Sequence[float] | np.ndarray
ARROWS: dict[str, str] = {"higher": "↑", "lower": "↓", "closer": "≈"}
SPLIT_DIRECTIONS: dict[str, Direction] = {
    "forget": "closer",
    "retain": "higher",
    "test": "higher",
}
"""What is better on each split, for a score that is high where a model knows it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """One number about a model: its name, its good direction and its range.

    Attributes:
      name: the key in ``results.json``; about: one sentence on what the number is.
      label: a short column heading; its first word may stand on a line of its own.
      direction: what is better; ``closer`` means closer to the retrained model.
      low, high: the range; infinite on a side without a bound.
      of: what has the metric: ``run``, a model of a run; ``beside``, such a model
        compared with the retrained one; ``log``, one log of an evaluation; ``pair``, a
        log compared with the retrained model's.
      compute: returns one value per row, or None where the run lacks what it needs.
        Metrics of a ``run`` have it, others do not.
      group: the table of a report in which the metric is a column.
      in_short: its name in the first table of a report; empty: it is not in it.

    Raises:
      ValueError: the direction, scope or group is unknown, the range is empty, or
        ``compute`` is missing or given in vain.
    """

    name: str
    label: str
    direction: Direction
    about: str
    low: float = 0.0
    high: float = 1.0
    of: tuple[Scope, ...] = ("run",)
    compute: "Callable[[Judged], Values | None] | None" = None
    group: Group = "further"
    in_short: str = ""

    def __post_init__(self) -> None:
        where = f"metric {self.name!r}:"
        if self.direction not in get_args(Direction):
            raise ValueError(f"{where} direction {self.direction!r}")
        if not self.of or set(self.of) - set(get_args(Scope)):
            raise ValueError(f"{where} of {self.of!r}")
        if self.group not in get_args(Group):
            raise ValueError(f"{where} group {self.group!r}")
        if not self.low < self.high:
            raise ValueError(f"{where} range [{self.low}, {self.high}]")
        if ("run" in self.of) != (self.compute is not None):
            raise ValueError(f"{where} of {self.of!r} with compute = {self.compute}")

    @property
    def arrow(self) -> str:
        """Return ↑ (higher is better), ↓ (lower) or ≈ (closer to retrained)."""
        return ARROWS[self.direction]


def declare(metric: Metric) -> Metric:
    """Register ``metric`` under its own name and return it."""
    return METRICS.register(metric.name, metric.about)(metric)


def declare_each(
    rows: Iterable[tuple[str, str, Direction, str]], **common: Any
) -> None:
    """Register a metric for each name, label, direction and about."""
    for name, label, direction, about in rows:
        declare(
            Metric(name=name, label=label, direction=direction, about=about, **common)
        )


def aggregate(values: Values, name: str = "values") -> dict[str, Any]:
    """Return the mean and every value, in the JSON shape of open-unlearning.

    ``{"agg_value": mean, "value_by_index": {"0": ..., "1": ...}}``.

    Raises:
      UserError: there is no value, or one is not finite (its index is named).
    """
    numbers = [float(value) for value in values]
    if not numbers:
        raise UserError(f"{name}: nothing to aggregate, the split has no rows")
    for index, number in enumerate(numbers):
        if not math.isfinite(number):
            raise UserError(f"{name}: {number} at index {index} of {len(numbers)}")
    return {
        "agg_value": math.fsum(numbers) / len(numbers),
        "value_by_index": {str(i): number for i, number in enumerate(numbers)},
    }
