"""What a stress test is given, what it returns, and how it is registered."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dareu_jax import data
from dareu_jax.audits.stress.verdict import above_of, verdict_of
from dareu_jax.config import StressConfig
from dareu_jax.errors import UserError
from dareu_jax.evaluation.metrics.rouge import rouge_l_recall
from dareu_jax.evaluation.run_suite import (
    Answers,
    RunSuite,
    answer,
    mean_logps,
    with_answers,
)
from dareu_jax.registry import STRESS
from dareu_jax.runs.stages import Session

ROLES = ("original", "retrained", "unlearned")
Values = Mapping[str, Sequence[float]]
"""Role -> one value for every forget record that is measured."""


@dataclasses.dataclass(frozen=True)
class Context:
    """The models of one seed, and what they are judged on and by.

    Attributes:
      run: the session of the seed; suite: what its models were evaluated with.
      models: role of `ROLES` -> parameters; a run may have no retrained model.
      judged: role -> the metrics that the run's own table has for it.
      folder: where stages of the tests keep their state.
      given: role -> greedy answers to the forget prompts, once they were asked for.
    """

    run: Session
    suite: RunSuite
    models: Mapping[str, Any]
    judged: Mapping[str, Mapping[str, float]]
    folder: Path
    given: dict[str, Answers] = dataclasses.field(default_factory=dict)

    @property
    def cfg(self) -> StressConfig:
        """The settings of the tests."""
        return self.run.inputs.cfg.stress

    @property
    def forget(self) -> data.TokenBatch:
        """The forget records, ``[N, ...]``."""
        return self.suite.tokens["forget"]

    def greedy(self, role: str) -> Answers:
        """The greedy answers of a model to the forget prompts."""
        if role not in self.given:
            self.given[role] = answer(self.suite, self.models[role], self.forget)
        return self.given[role]

    def said(self, role: str) -> data.TokenBatch:
        """The forget prompts with a model's greedy answers as responses."""
        return with_answers(self.forget, self.greedy(role))

    def probability(self, params: Any) -> list[float]:
        """exp(mean log p) of the gold answers to the forget prompts, ``[N]``."""
        return np.exp(mean_logps(self.suite, params, self.forget)).tolist()

    def rouge(self, params: Any) -> list[float]:
        """ROUGE-L recall of the greedy answers to the forget prompts, ``[N]``."""
        said = answer(self.suite, params, self.forget)
        return rouge_l_recall(said.text, self.suite.gold["forget"])


@dataclasses.dataclass(frozen=True)
class StressTest:
    """One test: ``attempt(context) -> outcome``; ``reads``: keys of `StressConfig`."""

    name: str
    reads: tuple[str, ...]
    attempt: Callable[[Context], dict[str, Any]]

    def settings(self, cfg: StressConfig) -> dict[str, Any]:
        """The settings that its outcome depends on."""
        return {key: getattr(cfg, key) for key in self.reads}


class Stressed(NamedTuple):
    """What `stress` found: outcomes by test, of which model and run, kept where."""

    outcomes: dict[str, dict[str, Any]]
    model: str
    scale: str
    folder: Path

    @property
    def report(self) -> Path:
        """The page about every outcome that is kept."""
        return self.folder / "report.html"


def stress_test(name: str, about: str, reads: tuple[str, ...] = ()) -> Callable:
    """Returns a decorator that registers a function as the test ``name``."""

    def declare(attempt: Callable[[Context], dict[str, Any]]) -> Callable:
        STRESS.register(name, about)(StressTest(name, reads, attempt))
        return attempt

    return declare


def outcome(
    measure: str,
    values: Values,
    more: str,
    parts: Mapping[str, Values] | None = None,
    also: str = "",
    **rest: Any,
) -> dict[str, Any]:
    """What a test returns: numbers of every model, and a sentence that compares them.

    Args:
      measure: what the numbers are; more: what it means when the unlearned model's
        is above the retrained model's.
      values: role -> value per forget record, whose means are the headline.
      parts: further ``label -> values``, of which means are kept.
      also: a second sentence of the verdict.
      rest: whatever else the test found, as JSON.
    """
    parts = parts or {}
    for label, group in {measure: values, **parts}.items():
        check_finite(label, group)
    said = verdict_of(measure, values, more), also, above_of(parts)
    return {
        "measure": measure,
        "headline": means(values),
        "verdict": " ".join(sentence for sentence in said if sentence),
        "values": {role: list(map(float, own)) for role, own in values.items()},
        "parts": {label: means(group) for label, group in parts.items()},
        **rest,
    }


def means(values: Values) -> dict[str, float]:
    """Role -> mean of its values."""
    return {role: math.fsum(own) / len(own) for role, own in values.items()}


def check_finite(label: str, values: Values) -> None:
    """Raises `UserError` when a model has a value that is NaN or infinite."""
    for role, own in values.items():
        for row, value in enumerate(own):
            if not math.isfinite(value):
                raise UserError(
                    f"{label}: {value} for the {role} model in forget record {row}; "
                    "its outputs are no numbers"
                )
