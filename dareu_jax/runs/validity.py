"""Whether the reward tells the original's answers from those of a model without them.

A reward that calls the answers of a model that never saw the owner the owner's own asks
for what no such model does: unlearning with it can only break the text.
"""

import warnings
from typing import Any, NamedTuple

import numpy as np

from dareu_jax.errors import Caution, UserError
from dareu_jax.evaluation.metrics.bootstrap import interval_of
from dareu_jax.evaluation.metrics.mia import auc
from dareu_jax.parallel import is_first
from dareu_jax.runs.folder import oracles_of, read_log
from dareu_jax.runs.inputs import Inputs
from dareu_jax.training.progress import Progress

METRIC = "attribution_reward"
VALID = 0.8
"""The AUC below which a reward is not believed."""


class Validity(NamedTuple):
    """How well attribution tells two models' answers to the forget prompts apart.

    Attributes:
      auc: P(the original's answer has the higher attribution), ties half.
      low, high: its 95 % interval over records.
      original, counterfactual: means over records.
      against: the row whose answers are the counterfactual, ``retrained`` or ``base``.
    """

    auc: float
    low: float
    high: float
    original: float
    counterfactual: float
    against: str


def validity_of(inputs: Inputs) -> Validity | None:
    """Return the validity of a seed's reward from its logs; None: nothing to compare.

    Raises:
      UserError: an attribution is no finite number.
    """
    others = [row for row in oracles_of(inputs.cfg) if row != "original"]
    if not others:
        return None
    against = others[0]
    said, counter = (attributions(inputs, row) for row in ("original", against))
    low, high = interval_of(higher, said, counter)
    means = float(said.mean()), float(counter.mean())
    return Validity(higher(said, counter), low, high, *means, against)


def higher(a: np.ndarray, b: np.ndarray) -> float:
    """Return P(a > b), ties half."""
    return auc(b, a)


def attributions(inputs: Inputs, row: str) -> np.ndarray:
    """Return the attribution ``[N]`` of a row's answers by the reward's kernel."""
    log: dict[str, Any] = read_log(inputs.folder, inputs.seed, row)
    return np.asarray([*log["metrics"][METRIC]["value_by_index"].values()])


def check_validity(inputs: Inputs, progress: Progress) -> None:
    """Say how valid the reward is; warn or raise `UserError` where it is not."""
    found, what = validity_of(inputs), inputs.cfg.reward.validity
    if found is None or what == "off":
        return
    progress.say(f"seed {inputs.seed} reward: {sentence(found)}")
    if found.auc >= VALID:
        return
    keeps_echo = inputs.cfg.attribution.echo == "keep"
    remedy = "set attribution.echo=hide" if keeps_echo else "take another kernel"
    trouble = (
        f"reward.kernel = {inputs.cfg.reward.kernel} also names those who never saw "
        f"the owner: {sentence(found)}; {remedy}"
    )
    if what == "refuse":
        raise UserError(f"{trouble}, or set reward.validity=warn")
    if is_first():
        warnings.warn(trouble, Caution, stacklevel=2)


def sentence(found: Validity) -> str:
    """Return the validity in words."""
    return (
        f"it tells the original's answers (attribution {found.original:.3f}) from "
        f"those of {found.against} ({found.counterfactual:.3f}) with AUC "
        f"{found.auc:.3f} [{found.low:.3f}, {found.high:.3f}]"
    )
