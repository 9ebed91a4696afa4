"""Style of the PNG plots whose curves lie between 0 and 1."""

import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure


def in_rows(figure: Figure, count: int, across: int, **how: Any) -> list[Axes]:
    """Return ``count`` axes in rows of ``across``, the rest of the last row empty."""
    axes = [*figure.subplots(-(-count // across), across, squeeze=False, **how).flat]
    for unused in axes[count:]:
        unused.set_visible(False)
    return axes[:count]


def titled(ax: Axes, title: str, x: str, y: str) -> None:
    """Name a panel and its axes."""
    ax.set_title(title, loc="left", fontsize=10)
    ax.set_xlabel(x)
    ax.set_ylabel(y)


def tidied(ax: Axes) -> None:
    """Show 0 to 1 on a faint grid, without a frame."""
    ax.set_ylim(-0.02, 1.02)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.15)


def as_png(figure: Figure) -> bytes:
    """Return a figure as PNG; the same picture gives the same bytes."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=120, metadata={"Software": None})
    return out.getvalue()
