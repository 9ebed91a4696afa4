"""Plots of logs: truth ratios, membership attacks, extraction by prefix length."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dareu_jax.errors import UserError
from dareu_jax.evaluation.logs.reading import EvalLog, SetLog, read_log
from dareu_jax.evaluation.logs.rows import finite_rows, ratios, shared_ratios, sides
from dareu_jax.evaluation.logs.scores import truth_ratio_named
from dareu_jax.evaluation.metrics.forget_quality import forget_quality
from dareu_jax.evaluation.metrics.mia import auc
from dareu_jax.evaluation.metrics.truth_ratio import TruthRatio
from dareu_jax.reporting.panels import as_png, in_rows, tidied, titled

Array = np.ndarray
Logs = Mapping[str, EvalLog]
Panel = Callable[[Axes], None]
COLOURS = {"candidate": "#d55e00", "reference": "#009e73"}
LEAST = 1e-4
"""Truth ratios below it and above its inverse are drawn at the edge."""
COLUMNS = 3


def plot_files(
    candidate: Path,
    reference: Path | None = None,
    truth_ratio: str | None = None,
    partial: bool = False,
) -> bytes | None:
    """Return what the logs of a model, and of the reference, have as a PNG; or None."""
    kind = truth_ratio_named(truth_ratio or "geometric")
    named = {"candidate": candidate, "reference": reference}
    logs = {k: read_log(x, partial) for k, x in named.items() if x is not None}
    shown = [*panels(logs, kind)]
    return drawn(shown) if shown else None


def check_png(path: Path) -> None:
    """Raise `UserError` where ``path`` is no place for a PNG."""
    if path.suffix != ".png" or not path.parent.is_dir():
        raise UserError(f"--plots {path}: give a FILE.png in a folder that is there")


def drawn(shown: list[Panel]) -> bytes:
    """Return the panels in rows, as a PNG."""
    across = min(COLUMNS, len(shown))
    down = math.ceil(len(shown) / across)
    figure = Figure(figsize=(4.6 * across, 3.6 * down), layout="constrained")
    for ax, draw in zip(in_rows(figure, len(shown), across), shown, strict=True):
        draw(ax)
        tidied(ax)
        ax.legend(loc="best", fontsize=9, frameon=False)
    return as_png(figure)


def panels(logs: Logs, kind: TruthRatio) -> Iterator[Panel]:
    """Yield the panels that the candidate's log has rows for."""
    forget = {k: log.sets["forget"] for k, log in logs.items() if "forget" in log.sets}
    ratio = ratios_of(forget, kind)
    if "candidate" in ratio:
        yield functools.partial(truth_ratios, ratio)
    known = {
        k: finite_rows(x.extraction)
        for k, x in forget.items()
        if x.extraction is not None
    }
    if "candidate" in known:
        yield functools.partial(extraction, known)
    for name in logs["candidate"].attacks:
        both = {k: log.attacks.get(name) for k, log in logs.items()}
        scores = {k: sides(one) for k, one in both.items() if one is not None}
        yield functools.partial(attack, name, scores)


def ratios_of(forget: Mapping[str, SetLog], kind: TruthRatio) -> dict[str, Array]:
    """Return truth ratios by role; of two roles, those of the rows that have both."""
    if len(forget) == 2:
        one, other = forget.values()
        if (shared := shared_ratios(one, other, kind)) is not None:
            return dict(zip(forget, shared, strict=True))
    found = {k: ratios(one, kind) for k, one in forget.items()}
    return {k: rows for k, rows in found.items() if rows is not None}


def truth_ratios(found: Mapping[str, Array], ax: Axes) -> None:
    """Draw the share of the forget rows with a truth ratio up to x."""
    for role, rows in found.items():
        ax.ecdf(np.clip(rows, LEAST, 1 / LEAST), color=COLOURS[role], label=role)
    ax.set_xscale("log")
    title = "forget truth ratios"
    if len({len(rows) for rows in found.values()}) < len(found):
        title += f", KS distance {forget_quality(*found.values()).statistic:.4f}"
    titled(ax, title, "truth ratio", "share of forget rows")


def extraction(found: Mapping[str, Array], ax: Axes) -> None:
    """Draw the share of forget rows whose rest is said, by the share that is given."""
    for role, strength in found.items():
        x, y = by_prefix(strength)
        ax.plot(x, y, drawstyle="steps-post", color=COLOURS[role], label=role)
    ax.set_xlim(-0.02, 1.02)
    title = "rest of the answer said word for word"
    titled(ax, title, "share that is given", "share of forget rows")


def by_prefix(strength: Array) -> tuple[Array, Array]:
    """Return prefix lengths from 0 to 1, and the share of rows said from each."""
    shortest = np.sort(1.0 - strength)
    x = np.unique([0.0, *shortest, 1.0])
    return x, np.searchsorted(shortest, x, "right") / len(shortest)


def attack(name: str, scores: Mapping[str, tuple[Array, Array]], ax: Axes) -> None:
    """Draw forget rows taken for seen against holdout rows taken for seen."""
    ax.plot([0, 1], [0, 1], ":", color="#8a8f98", lw=1)
    for role, (forget, holdout) in scores.items():
        label = f"{role}, AUC {auc(forget, holdout):.3f}"
        ax.plot(*roc(forget, holdout), color=COLOURS[role], label=label)
    ax.set_xlim(-0.02, 1.02)
    x, y = "holdout rows taken for seen", "forget rows taken for seen"
    titled(ax, f"attack {name}", x, y)


def roc(forget: Array, holdout: Array) -> tuple[Array, Array]:
    """Return shares of holdout and forget rows with a score up to each, from 0."""
    at = np.unique(np.concatenate([forget, holdout]))
    x, y = (
        np.searchsorted(np.sort(side), at, "right") / len(side)
        for side in (holdout, forget)
    )
    return np.concatenate([[0.0], x]), np.concatenate([[0.0], y])
