"""List the stages of one seed in running order, each with the stages that it reads.

The pipeline runs down this list; checks and estimates read the same one.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from dareu_jax.config import RunConfig
from dareu_jax.errors import UserError
from dareu_jax.runs.folder import oracles_of
from dareu_jax.unlearning import method_config, reads_of
from dareu_jax.unlearning.reward_stages import RUN, changes_of

Kind = Literal["model", "index", "method", "evaluation"]
LABELS = {"original": "finetune_original", "retrained": "finetune_retrained"}
"""Stages whose checkpoints and log lines have another name than their result."""
EVALUATE = "evaluate_"


class Planned(NamedTuple):
    """A stage of one seed."""

    name: str  # of its result
    kind: Kind  # of its result; the evaluation of a row leaves a log
    reads: tuple[str, ...] = ()  # names of the stages whose results it needs

    @property
    def label(self) -> str:
        """What checkpoints and log lines of the stage are called."""
        return LABELS.get(self.name, self.name)

    @property
    def row(self) -> str:
        """The row of the table that an evaluation judges."""
        return self.name.removeprefix(EVALUATE)


SHARED = (Planned("prior", "model"), Planned("base", "model"))
"""Models that are made just before the first method that reads them."""


def plan(cfg: RunConfig) -> tuple[Planned, ...]:
    """Return the stages of one seed, in running order.

    First original, reward, judge, retrained, and their evaluations; then every method,
    after what it reads, with its evaluation. Their names must differ.
    """
    oracles = oracles_of(cfg)
    stages = [
        Planned("original", "model"),
        Planned(RUN, "index", ("original",)),
        Planned("judge", "index", ("original",)),
    ]
    stages += [Planned(name, "model") for name in oracles if name != "original"]
    stages += [evaluation(name, oracles) for name in oracles]
    for row in cfg.methods:
        reads = reads_of(row, method_config(cfg, row))
        known = {stage.name for stage in stages}
        models = {stage.name for stage in SHARED}
        if row in known | models or changes_of(row) is not None:
            raise UserError(f"methods: {row!r} is the name of a stage of every run")
        stages += [stage for stage in SHARED if stage.name in reads - known]
        rewards = (name for name in reads - known if changes_of(name) is not None)
        stages += [Planned(name, "index", ("original",)) for name in sorted(rewards)]
        stages += [
            Planned(row, "method", ("original", *sorted(reads))),
            evaluation(row, oracles),
        ]
    return tuple(stages)


def evaluation(row: str, oracles: Sequence[str]) -> Planned:
    """Return the stage that judges a row beside the oracles, by both indices."""
    beside = (name for name in oracles if name != "base")
    reads = dict.fromkeys((row, *beside, RUN, "judge"))
    return Planned(f"{EVALUATE}{row}", "evaluation", tuple(reads))


def outstanding(
    stages: Sequence[Planned], is_done: Callable[[Planned], bool]
) -> dict[str, bool]:
    """Return what is still to do, by name -> whether it has to run or to be loaded."""
    asked: set[str] = set()
    todo: dict[str, bool] = {}
    for stage in reversed(stages):
        is_last = stage.kind == "evaluation"
        if not is_last and stage.name not in asked:
            continue
        done = is_done(stage)
        if is_last and done:
            continue
        todo[stage.name] = not done
        if not done or stage.kind == "index":  # an index is calibrated when loaded
            asked |= set(stage.reads)
    return dict(reversed(todo.items()))
