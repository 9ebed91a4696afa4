"""What a metric is, how its values are stored, and the model-based metrics."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

from dareu_jax.errors import UserError
from dareu_jax.registry import METRICS

Direction = Literal["higher", "lower", "closer"]
Scope = Literal["run", "log", "pair"]
ARROWS: dict[str, str] = {"higher": "↑", "lower": "↓", "closer": "≈"}


@dataclasses.dataclass(frozen=True)
class Metric:
    """One number about a model: its name, its good direction and its range.

    Attributes:
      name: the key in ``results.json``.
      label: a short column heading; its first word may stand on a line of its own.
      direction: what is better; ``closer`` means closer to the retrained model.
      low: the smallest possible value, ``-math.inf`` when there is none.
      high: the largest possible value, ``math.inf`` when there is none.
      about: one sentence that says what the number is.
      of: what has it: ``run``, a model of a run; ``log``, one log of an evaluation;
        ``pair``, a log beside that of the retrained model.

    Raises:
      ValueError: for an unknown direction or scope, or an empty range.
    """

    name: str
    label: str
    direction: Direction
    low: float
    high: float
    about: str
    of: tuple[Scope, ...] = ("run",)

    def __post_init__(self) -> None:
        if self.direction not in get_args(Direction):
            raise ValueError(f"metric {self.name!r}: direction {self.direction!r}")
        if not self.of or set(self.of) - set(get_args(Scope)):
            raise ValueError(f"metric {self.name!r}: of {self.of!r}")
        if not self.low < self.high:
            raise ValueError(f"metric {self.name!r}: range [{self.low}, {self.high}]")

    @property
    def arrow(self) -> str:
        """Returns ↑ (higher is better), ↓ (lower) or ≈ (closer to retrained)."""
        return ARROWS[self.direction]


def declare(metric: Metric) -> Metric:
    """Registers ``metric`` under its own name and returns it."""
    return METRICS.register(metric.name, metric.about)(metric)


def aggregate(values: Sequence[float]) -> dict[str, Any]:
    """Returns the mean and every value, in the JSON shape of open-unlearning.

    ``{"agg_value": mean, "value_by_index": {"0": ..., "1": ...}}``.

    Raises:
      UserError: when there is no value, or one is not finite (its index is named).
    """
    numbers = [float(value) for value in values]
    if not numbers:
        raise UserError("no value to aggregate: the evaluated split has no rows")
    for index, number in enumerate(numbers):
        if not math.isfinite(number):
            raise UserError(f"value {number} at index {index} of {len(numbers)}")
    return {
        "agg_value": math.fsum(numbers) / len(numbers),
        "value_by_index": {str(i): number for i, number in enumerate(numbers)},
    }


_PROBABILITY = "length-normalised probability of the gold answer"
FORGET_PROBABILITY = declare(
    Metric(
        *("forget_probability", "forget prob", "closer", 0.0, 1.0),
        about=f"Mean {_PROBABILITY} on the forget prompts.",
        of=("run", "log"),
    )
)
RETAIN_PROBABILITY = declare(
    Metric(
        *("retain_probability", "retain prob", "higher", 0.0, 1.0),
        about=f"Mean {_PROBABILITY} on the retain prompts.",
        of=("run", "log"),
    )
)
TEST_PROBABILITY = declare(
    Metric(
        *("test_probability", "test prob", "higher", 0.0, 1.0),
        about=f"Mean {_PROBABILITY} on the test prompts.",
        of=("run", "log"),
    )
)
ATTRIBUTION_REWARD = declare(
    Metric(
        *("attribution_reward", "attribution (reward)", "lower", 0.0, 1.0),
        about="Mean attribution of the answers on the forget prompts to the forget "
        "owners, by the classifier that served as reward.",
    )
)
ATTRIBUTION_UNSEEN = declare(
    Metric(
        *("attribution_unseen", "attribution (unseen)", "lower", 0.0, 1.0),
        about="Mean attribution of the answers on the forget prompts to the forget "
        "owners, by an independent classifier that no method trained against.",
    )
)
RETRAINED_LIKELIHOOD = declare(
    Metric(
        *("retrained_likelihood", "retrained loglik", "higher", -math.inf, 0.0),
        about="Mean log-likelihood per token of the answers on the forget prompts "
        "under the retrained model.",
    )
)
