"""Relearning curves, leak against k, ROUGE against the prefilled share."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dareu_jax.parallel import is_first
from dareu_jax.reporting.panels import as_png, tidied, titled

Outcome = Mapping[str, Any]
COLOURS = {"original": "#8a8f98", "retrained": "#009e73", "unlearned": "#d55e00"}
DASHES = ("-", "--", ":")


def write_plots(path: Path, outcomes: Mapping[str, Outcome]) -> None:
    """Writes one panel for every test that has a curve, as a PNG; none: nothing."""
    shown = {name: PANELS[name] for name in PANELS if name in outcomes}
    if not shown or not is_first():
        return
    figure = Figure(figsize=(4.6 * len(shown), 3.6), layout="constrained")
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for ax, (name, draw) in zip(axes, shown.items(), strict=True):
        draw(ax, outcomes[name])
        tidied(ax)
    handles, labels = axes[0].get_legend_handles_labels()
    known = dict(zip(labels, handles, strict=True))
    figure.legend(known.values(), known.keys(), loc="outside lower center", ncols=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(as_png(figure))


def relearning(ax: Axes, found: Outcome) -> None:
    """Forget probability by update; a dash for each kind of record trained on."""
    for dash, (label, curve) in zip(DASHES, found["curves"].items(), strict=True):
        for role, path in curve.items():
            name = role if dash == DASHES[0] else None
            ax.plot(
                found["steps"],
                path["probability"],
                dash,
                color=COLOURS[role],
                label=name,
            )
        ax.plot([], [], dash, color="#010203", label=f"on {label}")
    ax.set_xscale("symlog", linthresh=1)
    titled(ax, "relearning", "updates", "forget probability")


def leaks(ax: Axes, found: Outcome) -> None:
    """Expected best ROUGE by k; a dash for each temperature."""
    for dash, (_, curve) in zip(DASHES, found["curves"].items(), strict=False):
        for role, values in curve.items():
            name = role if dash == DASHES[0] else None
            ax.plot(found["k"], values, dash, color=COLOURS[role], label=name)
    ax.set_xscale("log", base=2)
    ax.set_xticks(found["k"], [str(k) for k in found["k"]])
    temperatures = " (solid) and ".join(found["curves"])
    titled(ax, f"best of k answers, T = {temperatures}", "k", "ROUGE-L recall")


def prefilling(ax: Axes, found: Outcome) -> None:
    """ROUGE of the rest by share of the gold answer that is given."""
    for role, values in found["curve"].items():
        ax.plot(found["shares"], values, "o-", color=COLOURS[role], label=role)
    titled(ax, "behind the first gold tokens", "share given", "ROUGE-L recall")


PANELS: dict[str, Callable[[Axes, Outcome], None]] = {
    "relearn": relearning,
    "sample": leaks,
    "prefill": prefilling,
}
