"""What `dareu fidelity` is asked to compare, checked before anything is trained."""

import math
import re
from pathlib import Path
from typing import NamedTuple

from dareu_jax.audits.fidelity.trial import IN_RUN, KEPT
from dareu_jax.config import AttributionConfig, RunConfig, with_overrides
from dareu_jax.data import Corpus
from dareu_jax.errors import UserError
from dareu_jax.registry import KERNELS
from dareu_jax.runs.checks import check
from dareu_jax.training.progress import Progress

FEWEST = 4
"""Subsets of owners below which a rank correlation over them says nothing."""


class Contender(NamedTuple):
    """A registered kernel, or `IN_RUN`, with its options."""

    kernel: str
    options: AttributionConfig


def contenders(cfg: RunConfig) -> dict[str, Contender]:
    """Label -> kernel and options, of every row of the table."""
    given = cfg.fidelity
    labels = given.kernels or (*KERNELS.names(), IN_RUN, *given.variants)
    return {label: contender(cfg, label) for label in labels}


def contender(cfg: RunConfig, label: str) -> Contender:
    """The kernel of a row; raises `UserError` when it is unknown."""
    where = f"fidelity.variants.{label}"
    changes = dict(cfg.fidelity.variants.get(label, {}))
    name = str(changes.pop("kernel", label))
    if not re.fullmatch(r"[\w.-]+", label) or re.match(KEPT, label):
        raise UserError(f"{where}: name it with other letters, such as {name}_2")
    if name != IN_RUN:
        KERNELS.get(name)
    keys = {f"attribution.{key}": value for key, value in changes.items()}
    return Contender(name, with_overrides(cfg, keys, where).attribution)


def check_plan(cfg: RunConfig, trial: Path, progress: Progress) -> Corpus:
    """Reads the whole input in a trial folder, as a run without methods does."""
    plain = cfg.model_copy(update={"methods": (), "overrides": {}})
    corpus = check(plain, trial, progress)
    owners, share = len(corpus.owners), cfg.fidelity.share
    size = round(share * owners)
    have = math.comb(owners, size) if 0 < size < owners else 0
    if have < FEWEST:
        raise UserError(
            f"{owners} owners have {have} different subsets of {size} "
            f"(fidelity.share = {share}), and {FEWEST} are needed; take more owners, "
            "or another share"
        )
    if have < cfg.fidelity.subsets:
        progress.say(
            f"note: {owners} owners have {have} different subsets of {size}, fewer "
            f"than fidelity.subsets = {cfg.fidelity.subsets}; all are used"
        )
    return corpus
