"""The indices that the reward of a row may read: the run's own, or one of these."""

import re
from typing import Any, NamedTuple

from dareu_jax.config import RunConfig

RUN = "reward"
"""The stage whose index is the reward of the run."""


class Change(NamedTuple):
    """What a row may change of how its index is built: a stage of its own.

    Attributes:
      key: of the section ``reward``, which asks for it.
      word: in the name of the stage, before its value where that is a number.
      called: what an estimate calls the index, ``{}`` the one of the run.
    """

    key: str
    word: str
    called: str


CHANGES = (
    Change("shuffle_owners", "shuffled", "shuffled {}"),
    Change("label_noise", "noise", "{} with noise"),
    Change("keep_echo", "echo", "{} with echo"),
)
"""Every change, in the order of their words; `runs.reward_index.fitted_of` does it."""


def reward_stage(cfg: RunConfig) -> str:
    """Return the name of the stage whose index is the reward of a row."""
    asked = {change.key: getattr(cfg.reward, change.key) for change in CHANGES}
    asked["keep_echo"] &= cfg.attribution.echo == "hide"
    parts = [RUN]
    for key, word, _ in CHANGES:
        if value := asked[key]:
            parts += [word] if value is True else [word, str(value)]
    return "_".join(parts)


def changes_of(stage: str) -> dict[str, Any] | None:
    """Return the keys of ``reward`` that made a stage; None: it is no reward."""
    found: dict[str, Any] = {}
    rest = stage.removeprefix(RUN)
    for key, word, _ in CHANGES:
        if match := re.match(rf"_{word}(?:_(\d[\d.e-]*))?(?=_|$)", rest):
            found[key] = float(match[1]) if match[1] else True
            rest = rest[match.end() :]
    return found if stage.startswith(RUN) and not rest else None


def called(stage: str, kernel: str) -> str:
    """Return what an estimate calls the index of a stage."""
    changes = changes_of(stage)
    if changes is None:
        return stage
    for change in CHANGES:
        if change.key in changes:
            kernel = change.called.format(kernel)
    return kernel
