"""Plots of the report, as inline SVG in the text colour of the page."""

import io
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dareu_jax.evaluation.seeds import seed_values, spread
from dareu_jax.reporting import summary
from dareu_jax.reporting.panels import in_rows

Points = list[tuple[float, float]]
Colours = Mapping[str, str]

FIRST_STAGES = ("finetune_original", "finetune_retrained", "classifier")
CURVES = {
    "reward": "reward",
    "kl_anchor": "KL to the anchor",
    "kl_reference": "KL to the reference",
    "attribution": "attribution to the forget owners",
    "response_length": "response length (tokens)",
}
_FIXED = {
    "original": "#8a8f98",
    "retrained": "#009e73",
    "finetune_original": "#8a8f98",
    "finetune_retrained": "#009e73",
}
_CYCLE = [f"C{i}" for i in (1, 0, 3, 4, 5, 6, 8, 9)]
"""Matplotlib's colours without green and grey, which are close to the fixed ones."""
_MARKERS = {"original": "X", "retrained": "*"}
_DASHES = ("-", "--", ":", "-.")
INK = "#010203"
_MOST_POINTS = 80
_ACROSS = 3
_INKED = "text.color axes.edgecolor axes.labelcolor xtick.color ytick.color grid.color"
STYLE: Any = {
    **dict.fromkeys(_INKED.split(), INK),
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.12,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "savefig.transparent": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "dareu_jax",
}


def colours(names: Iterable[str]) -> Colours:
    """Return a colour for each model and stage, methods by their order in the run."""
    others = dict.fromkeys(name for name in names if name not in _FIXED)
    return _FIXED | dict(zip(others, itertools.cycle(_CYCLE)))


def training_svg(curves: Sequence[Mapping[str, Any]], colours: Colours) -> str:
    """Return one panel per quantity of the unlearning updates, or ""."""
    panels = {
        title: _lines(curves, field, lambda stage: stage not in FIRST_STAGES)
        for field, title in CURVES.items()
    }
    return _panels(panels, colours, slug="unlearning-curves", unit="update")


def loss_svg(curves: Sequence[Mapping[str, Any]], colours: Colours) -> str:
    """Return the losses of the fine-tunings and of the classifier, or ""."""
    tuned, classifier = FIRST_STAGES[:2], FIRST_STAGES[2:]
    panels = {
        "fine-tuning loss": _lines(curves, "loss", tuned.__contains__),
        "attribution classifier loss": _lines(curves, "loss", classifier.__contains__),
    }
    return _panels(panels, colours, slug="training-losses", unit="step")


def balance_svg(results: Mapping[str, Any], colours: Colours) -> str:
    """Return forget ROUGE against retain ROUGE, every model and seed, or ""."""
    points = {}
    for name in summary.model_names(results):
        xs = seed_values(results, name, "forget_rouge")
        if xs and (ys := seed_values(results, name, "retain_rouge")):
            points[name] = xs, ys
    if not points:
        return ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.8, 4.6), layout="constrained")
        axes = figure.subplots()
        for name, (xs, ys) in points.items():
            _scatter(axes, name, xs, ys, colour=colours[name])
        axes.set_xlabel("ROUGE-L recall on forget prompts")
        axes.set_ylabel("ROUGE-L recall on retain prompts")
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.02)
        figure.legend(loc="outside lower left", ncols=3)
        return inline_svg(figure, "balance")


def bars_svg(results: Mapping[str, Any], group: str, colours: Colours) -> str:
    """Return a panel per metric of a group with a bar per model, or ""."""
    shown = summary.columns(results, group)
    names = summary.model_names(results)[::-1]
    if not shown:
        return ""
    across = min(len(shown), _ACROSS)
    down = math.ceil(len(shown) / across)
    with matplotlib.rc_context(STYLE):
        size = (max(5.8, 3.6 * across), down * (1.0 + 0.4 * len(names)))
        figure = Figure(figsize=size, layout="constrained")
        grid = in_rows(figure, len(shown), across, sharey=True)
        for axes, metric in zip(grid, shown, strict=True):
            bars = [_bar(results, name, metric.name) for name in names]
            means, errors = zip(*bars, strict=True)
            axes.barh(
                range(len(names)),
                means,
                height=0.6,
                xerr=errors if any(errors) else None,
                color=[colours[name] for name in names],
                error_kw={"ecolor": INK, "elinewidth": 1},
            )
            axes.set_yticks(range(len(names)), names)
            if math.isfinite(metric.low) and math.isfinite(metric.high):
                axes.set_xlim(metric.low, metric.high)
            axes.set_xlabel(f"{metric.label} {metric.arrow}")
            axes.grid(axis="y", visible=False)
        return inline_svg(figure, group)


def _lines(
    curves: Sequence[Mapping[str, Any]], field: str, wanted: Any
) -> dict[tuple[str, str], Points]:
    """Return ``(stage, seed) -> points`` of ``field``; gaps and NaNs are left out."""
    lines: dict[tuple[str, str], Points] = {}
    for row in curves:
        value = row.get(field)
        if wanted(row["stage"]) and value is not None and math.isfinite(value):
            key = (row["stage"], str(row.get("seed", 0)))
            lines.setdefault(key, []).append((row["step"], value))
    return {key: _thin(sorted(points)) for key, points in lines.items()}


def _thin(points: Points) -> Points:
    """Return at most 80 points, each the mean of consecutive ones."""
    size = math.ceil(len(points) / _MOST_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]


def _panels(
    panels: Mapping[str, dict[tuple[str, str], Points]],
    colours: Colours,
    *,
    slug: str,
    unit: str,
) -> str:
    """Return a panel for each title with lines, or "": colour = stage, dash = seed."""
    panels = {title: lines for title, lines in panels.items() if lines}
    if not panels:
        return ""
    rows = math.ceil(len(panels) / 2)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.6, 0.6 + 2.6 * rows), layout="constrained")
        grid = in_rows(figure, len(panels), 2)
        keys = list(dict.fromkeys(itertools.chain(*panels.values())))
        seeds = sorted({seed for _, seed in keys})
        for axes, (title, lines) in zip(grid, panels.items(), strict=True):
            for (stage, seed), points in lines.items():
                dash = _DASHES[seeds.index(seed) % len(_DASHES)]
                xs, ys = zip(*points, strict=True)
                axes.plot(xs, ys, dash, color=colours[stage], lw=1.3)
            axes.set_title(title)
            axes.set_xlabel(unit)
        handles = [
            Line2D([], [], color=colours[stage], lw=2, label=stage)
            for stage in dict.fromkeys(stage for stage, _ in keys)
        ]
        if len(seeds) > 1:
            handles += [
                Line2D([], [], color=INK, lw=1.3, ls=dash, label=f"seed {seed}")
                for seed, dash in zip(seeds, itertools.cycle(_DASHES), strict=False)
            ]
        figure.legend(handles=handles, loc="outside lower left", ncols=6)
        return inline_svg(figure, slug)


def _scatter(
    axes: Axes, name: str, xs: Sequence[float], ys: Sequence[float], *, colour: str
) -> None:
    """Draw every seed faintly and their mean in full; retrained gets a cross-hair."""
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    marker = _MARKERS.get(name, "o")
    if name == "retrained":
        axes.axvline(mean_x, color=colour, lw=1, ls="--")
        axes.axhline(mean_y, color=colour, lw=1, ls="--")
    if len(xs) > 1:
        axes.scatter(xs, ys, color=colour, marker=marker, s=18, alpha=0.4)
    label = f"{name} (target)" if name == "retrained" else name
    size = 190 if name == "retrained" else 70
    axes.scatter(
        [mean_x], [mean_y], color=colour, marker=marker, s=size, label=label, zorder=3
    )


def _bar(
    results: Mapping[str, Any], name: str, metric_name: str
) -> tuple[float, float]:
    """Return mean and deviation; a missing mean is NaN, so that no bar is drawn."""
    mean, deviation = spread(results, name, metric_name)
    return math.nan if mean is None else mean, deviation or 0.0


def inline_svg(figure: Figure, slug: str) -> str:
    """Return the figure for use inside HTML: no prologue, own ids, page's ink."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{slug}-", text)
    text = re.sub(
        r'<svg (.*?)width="[^"]*"', r"<svg \1", text, count=1, flags=re.DOTALL
    )
    text = re.sub(r'(<svg .*?)height="[^"]*"', r"\1", text, count=1, flags=re.DOTALL)
    return text.replace(INK, "currentColor")
