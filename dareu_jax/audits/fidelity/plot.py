"""LDS and leave-one-out correlation of every kernel, with intervals."""

import io
from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.figure import Figure

PANELS = {"lds": "LDS (Spearman)", "leave_one_out": "leave one owner out (Spearman)"}
COLOURS = {"lds": "#d55e00", "leave_one_out": "#0072b2"}


def plot(results: Mapping[str, Any]) -> bytes:
    """Return one panel per metric, best LDS on top, as an SVG."""
    kernels = results["kernels"]
    labels = sorted(kernels, key=lambda label: kernels[label]["lds"]["value"])
    figure = Figure(figsize=(9.0, 0.3 * len(labels) + 1.2), layout="constrained")
    axes = figure.subplots(1, len(PANELS), sharey=True)
    for ax, (name, title) in zip(axes, PANELS.items(), strict=True):
        rows = [kernels[label][name] for label in labels]
        values = [row["value"] for row in rows]
        below = [max(0.0, row["value"] - row["low"]) for row in rows]
        above = [max(0.0, row["high"] - row["value"]) for row in rows]
        places = list(range(len(labels)))
        ax.errorbar(values, places, xerr=[below, above], fmt="o", color=COLOURS[name])
        ax.axvline(0.0, color="#8a8f98", linewidth=1)
        ax.set_yticks(places, labels)
        ax.set_title(title, loc="left", fontsize=10)
        ax.spines[["top", "right"]].set_visible(False)
    out = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "dareu_jax"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
