"""Relearning, leak against k, ROUGE against the prefilled share, attribution."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dareu_jax.reporting.panels import as_png, tidied, titled
from dareu_jax.reporting.plots import INK, STYLE, inline_svg

Outcome = Mapping[str, Any]
COLOURS = {"original": "#8a8f98", "retrained": "#009e73", "unlearned": "#d55e00"}
CURVES, DASHES = {"curve", "curves"}, ("-", "--", ":")


def plots(outcomes: Mapping[str, Outcome]) -> bytes | None:
    """Return one panel for every test that has a curve, as a PNG; none: None."""
    shown = panels_of(outcomes)
    if not shown:
        return None
    figure = Figure(figsize=(4.6 * len(shown), 3.6), layout="constrained")
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for ax, name in zip(axes, shown, strict=True):
        draw_panel(ax, name, outcomes[name])
        tidied(ax)
    add_legend(figure, axes)
    return as_png(figure)


def panel_svgs(outcomes: Mapping[str, Outcome]) -> dict[str, str]:
    """Test -> its panel as SVG for use inside a page, of every test with a curve."""
    found = {}
    for name in panels_of(outcomes):
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(5.8, 4.4), layout="constrained")
            axes = figure.subplots()
            draw_panel(axes, name, outcomes[name])
            add_legend(figure, [axes])
            found[name] = inline_svg(figure, name)
    return found


def panels_of(outcomes: Mapping[str, Outcome]) -> list[str]:
    """The tests with a curve, in the order of `PANELS`."""
    return [name for name in PANELS if outcomes.get(name, {}).keys() & CURVES]


def draw_panel(ax: Axes, name: str, found: Outcome) -> None:
    """Draws the curves of one test, between 0 and 1."""
    PANELS[name](ax, found)
    ax.set_ylim(-0.02, 1.02)


def add_legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """Names every line of the axes once, below them."""
    found = [ax.get_legend_handles_labels() for ax in axes]
    known = {
        label: handle
        for handles, labels in found
        for handle, label in zip(handles, labels, strict=True)
    }
    figure.legend(known.values(), known.keys(), loc="outside lower center", ncols=3)


def lines(
    ax: Axes,
    at: Sequence[float],
    curves: Mapping[str, Mapping[str, Sequence[float]]],
    kind: str = "",
) -> None:
    """Draws role -> values of every group, a dash each, which ``kind`` names."""
    for dash, (group, curve) in zip(DASHES, curves.items(), strict=False):
        for role, values in curve.items():
            name = role if dash == DASHES[0] else None
            ax.plot(at, values, dash, color=COLOURS[role], label=name)
        if kind:
            ax.plot([], [], dash, color=INK, label=f"{kind} {group}")


def relearning(ax: Axes, found: Outcome) -> None:
    """Forget probability by update; a dash for each kind of record trained on."""
    curves = {
        label: {role: path["probability"] for role, path in curve.items()}
        for label, curve in found["curves"].items()
    }
    lines(ax, found["steps"], curves, "on")
    ax.set_xscale("symlog", linthresh=1)
    titled(ax, "relearning", "updates", "forget probability")


def leaks(ax: Axes, found: Outcome) -> None:
    """Expected best ROUGE by k; a dash for each temperature."""
    lines(ax, found["k"], found["curves"])
    ax.set_xscale("log", base=2)
    ax.set_xticks(found["k"], [str(k) for k in found["k"]])
    temperatures = " (solid) and ".join(found["curves"])
    titled(ax, f"best of k answers, T = {temperatures}", "k", "ROUGE-L recall")


def prefilling(ax: Axes, found: Outcome) -> None:
    """ROUGE of the rest by share of the gold answer that is given."""
    for role, values in found["curve"].items():
        ax.plot(found["shares"], values, "o-", color=COLOURS[role], label=role)
    titled(ax, "behind the first gold tokens", "share given", "ROUGE-L recall")


def prefixes(ax: Axes, found: Outcome) -> None:
    """Attribution to the forget owners by share of the answer; a dash per judge."""
    lines(ax, found["prefixes"], found["curves"], "by the")
    titled(ax, "attribution by prefix length", "share of the answer", "attribution")


PANELS: dict[str, Callable[[Axes, Outcome], None]] = {
    "relearn": relearning,
    "sample": leaks,
    "prefill": prefilling,
    "held_out": prefixes,
}
