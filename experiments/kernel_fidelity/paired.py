"""Differences of LDS between kernels of a finished `dareu fidelity`, with intervals.

    python experiments/kernel_fidelity/paired.py FOLDER ekfac grad_dot ...

Every bootstrap draw takes the same queries and subsets for both kernels of a pair.
"""

import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np

from dareu_jax.audits.fidelity.measures import lds
from dareu_jax.audits.fidelity.plan import contenders
from dareu_jax.audits.fidelity.trial import Trial
from dareu_jax.config import load_config
from dareu_jax.runs.load import opened
from dareu_jax.runs.stages import Session
from dareu_jax.training.tracking import Tracker

DRAWS = 2000


def gaps(first, second, found, rng) -> np.ndarray:
    """``[DRAWS]`` differences of mean LDS of one seed."""
    q, m = len(found.owner), len(found.masks)
    out = np.zeros(DRAWS)
    for draw in range(DRAWS):
        rows, at = rng.integers(0, q, q), rng.integers(0, m, m)
        outcome = found.subsets[0][rows][:, at]
        one, other = (
            lds(scores[rows], found.masks[at], outcome).mean()
            for scores in (first, second)
        )
        out[draw] = one - other
    return out


def main(folder: str, *kernels: str) -> None:
    cfg = load_config(Path(folder) / "config.resolved.yaml", [])
    plan = contenders(cfg)
    with tempfile.TemporaryDirectory() as trial, Tracker(Path(trial)) as tracker:
        seeds = [opened(cfg, seed, Path(folder)) for seed in cfg.seeds]
        trials = [Trial(Session(inputs, tracker)) for inputs in seeds]
        found = [trial.outcomes() for trial in trials]
        scores = {k: [t.scores(k, *plan[k]).raw for t in trials] for k in kernels}
    rng = np.random.default_rng(0)
    for a, b in pairwise(kernels):
        seeds = zip(scores[a], scores[b], found, strict=True)
        drawn = np.mean([gaps(*one, rng) for one in seeds], axis=0)
        low, high = np.percentile(drawn, [2.5, 97.5])
        whole = [
            [lds(s, f.masks, f.subsets[0]).mean() for s, f in zip(scores[k], found)]
            for k in (a, b)
        ]
        gap = np.mean(whole[0]) - np.mean(whole[1])
        print(f"{a} - {b}: {gap:.3f} ({low:.3f}, {high:.3f})")


if __name__ == "__main__":
    main(*sys.argv[1:])
