"""Every picture of the report, as inline SVG that follows the page's text colour."""

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

from dareu_jax.reporting import summary

Points = list[tuple[float, float]]

FIRST_STAGES = ("finetune_original", "finetune_retrained", "classifier")
CURVES = {
    "reward": "reward",
    "kl_reference": "KL to the reference",
    "attribution": "attribution to the forget owners",
    "response_length": "response length (tokens)",
}
_COLOURS = {
    "original": "#8a8f98",
    "retrained": "#009e73",
    "dareu": "#d55e00",
    "dareu_paper": "#e69f00",
    "prior_only": "#56b4e9",
    "grad_diff": "#3f7fd0",
    "npo": "#cc79a7",
    "dareu_shuffled": "#8c6bb1",
    "finetune_original": "#8a8f98",
    "finetune_retrained": "#009e73",
    "classifier": "#d55e00",
}
_OTHERS = ("#17becf", "#bcbd22", "#b15928", "#e377c2")
_MARKERS = {"original": "X", "retrained": "*"}
_DASHES = ("-", "--", ":", "-.")
INK = "#010203"
_MOST_POINTS = 80
STYLE: Any = {
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color"), INK
    ),
    "ytick.color": INK,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "savefig.transparent": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "dareu_jax",
}


def training_svg(curves: Sequence[Mapping[str, Any]]) -> str:
    """Returns one panel per quantity of the unlearning updates, or ""."""
    lines = {field: _lines(curves, field, _is_method) for field in CURVES}
    panels = {field: found for field, found in lines.items() if found}
    return _panels(panels, CURVES, "unlearning-curves", "update") if panels else ""


def loss_svg(curves: Sequence[Mapping[str, Any]]) -> str:
    """Returns the losses of the fine-tunings and of the classifier, or ""."""
    panels = {
        name: _lines(curves, "loss", names.__contains__)
        for name, names in (
            ("fine-tuning loss", FIRST_STAGES[:2]),
            ("attribution classifier loss", FIRST_STAGES[2:]),
        )
    }
    panels = {name: found for name, found in panels.items() if found}
    titles = {name: name for name in panels}
    return _panels(panels, titles, "training-losses", "step") if panels else ""


def balance_svg(results: Mapping[str, Any]) -> str:
    """Returns forget ROUGE against retain ROUGE, every model and seed, or ""."""
    points = {
        name: [
            summary.seed_values(results, name, metric.name)
            for metric in summary.ROUGE[:2]
        ]
        for name in summary.model_names(results)
    }
    points = {name: xy for name, xy in points.items() if all(xy)}
    if not points:
        return ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.8, 4.6), layout="constrained")
        axes = figure.subplots()
        for name, (xs, ys) in points.items():
            _scatter(axes, name, xs, ys)
        axes.set_xlabel("ROUGE-L recall on forget prompts")
        axes.set_ylabel("ROUGE-L recall on retain prompts")
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.02)
        figure.legend(loc="outside lower left", ncols=3)
        return inline_svg(figure, "balance")


def attribution_svg(results: Mapping[str, Any]) -> str:
    """Returns bars of the attribution under both classifiers per model, or ""."""
    shown = summary.present(results, summary.ATTRIBUTION[:2])
    names = summary.model_names(results)[::-1]
    if not shown:
        return ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.8, 1.4 + 0.4 * len(names)), layout="constrained")
        axes = figure.subplots()
        for index, metric in enumerate(shown):
            means, errors = zip(
                *(_bar(results, name, metric.name) for name in names), strict=True
            )
            axes.barh(
                [row + 0.2 - 0.4 * index for row in range(len(names))],
                means,
                height=0.36,
                xerr=errors if any(errors) else None,
                color=("#d55e00", "#3f7fd0")[index],
                error_kw={"ecolor": INK, "elinewidth": 1},
                label=metric.label,
            )
        axes.set_yticks(range(len(names)), names)
        axes.set_xlim(0, 1)
        axes.set_xlabel("mean attribution to the forget owners")
        axes.grid(axis="y", visible=False)
        figure.legend(loc="outside upper right", ncols=2)
        return inline_svg(figure, "attribution")


def _is_method(stage: str) -> bool:
    return stage not in FIRST_STAGES


def _lines(
    curves: Sequence[Mapping[str, Any]], field: str, wanted: Any
) -> dict[tuple[str, str], Points]:
    """Returns ``(stage, seed) -> points`` of ``field``; gaps and NaNs are left out."""
    lines: dict[tuple[str, str], Points] = {}
    for row in curves:
        value = row.get(field)
        if wanted(row["stage"]) and value is not None and math.isfinite(value):
            key = (row["stage"], str(row.get("seed", 0)))
            lines.setdefault(key, []).append((row["step"], value))
    return {
        (stage, seed): _thin(sorted(points))
        for stage in summary.order_models(stage for stage, _ in lines)
        for (of, seed), points in lines.items()
        if of == stage
    }


def _thin(points: Points) -> Points:
    """Returns at most 80 points, each the mean of consecutive ones."""
    size = math.ceil(len(points) / _MOST_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]


def _panels(
    panels: Mapping[str, dict[tuple[str, str], Points]],
    titles: Mapping[str, str],
    slug: str,
    unit: str,
) -> str:
    """Returns a two-column figure; colour = stage, dash = seed, one shared legend."""
    rows = math.ceil(len(panels) / 2)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.6, 0.6 + 2.6 * rows), layout="constrained")
        grid = figure.subplots(rows, 2, squeeze=False).flat
        keys = list(dict.fromkeys(itertools.chain(*panels.values())))
        seeds = sorted({seed for _, seed in keys})
        for axes, (name, lines) in zip(grid, panels.items(), strict=False):
            for (stage, seed), points in lines.items():
                dash = _DASHES[seeds.index(seed) % len(_DASHES)]
                axes.plot(
                    *zip(*points, strict=True), dash, color=_colour(stage), lw=1.3
                )
            axes.set_title(titles[name])
            axes.set_xlabel(unit)
        for axes in list(grid)[len(panels) :]:
            axes.set_visible(False)
        handles = _legend_handles([stage for stage, _ in keys], seeds)
        figure.legend(handles=handles, loc="outside lower left", ncols=6)
        return inline_svg(figure, slug)


def _legend_handles(stages: Iterable[str], seeds: Sequence[str]) -> list[Line2D]:
    handles = [
        Line2D([], [], color=_colour(stage), lw=2, label=stage)
        for stage in dict.fromkeys(stages)
    ]
    if len(seeds) > 1:
        handles += [
            Line2D([], [], color=INK, lw=1.3, ls=dash, label=f"seed {seed}")
            for seed, dash in zip(seeds, itertools.cycle(_DASHES), strict=False)
        ]
    return handles


def _scatter(axes: Axes, name: str, xs: Sequence[float], ys: Sequence[float]) -> None:
    """Draws every seed faintly and their mean in full; retrained gets a cross-hair."""
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    colour, marker = _colour(name), _MARKERS.get(name, "o")
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
    """Returns mean and deviation; a missing mean is NaN, so that no bar is drawn."""
    mean, deviation = summary.spread(results, name, metric_name)
    return math.nan if mean is None else mean, deviation or 0.0


def _colour(name: str) -> str:
    """Returns the fixed colour of a model or stage; others share four more."""
    return _COLOURS.get(name) or _OTHERS[sum(map(ord, name)) % len(_OTHERS)]


def inline_svg(figure: Figure, slug: str) -> str:
    """Returns the figure for use inside HTML: no prologue, own ids, page's ink."""
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
