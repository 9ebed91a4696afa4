"""The model card of an exported model: what was done, the numbers, the limits."""

from collections.abc import Mapping
from typing import Any

from dareu_jax.reporting import summary

LIMITS = """\
## Limits

These numbers hold for the prompts of this run. They do not show that the owners' data
cannot be brought back by further training, by quantisation or by other prompts, and
they are no statement about texts that were not evaluated.
"""


def model_card(
    results: Mapping[str, Any], name: str, seed: int, step: int | None = None
) -> str:
    """Return the card as Markdown."""
    one = {"models": {}, "tow": {}, "seeds": {str(seed): results["seeds"][str(seed)]}}
    there = summary.model_names(one)
    rows = [row for row in there if row in (*summary.ORACLES, name)]
    shown = summary.columns(one)
    lines = [f"| metric | {' | '.join(rows)} |", "|---|" + "---|" * len(rows)]
    for metric in shown:
        cells = [summary.cell(one, row, metric) for row in rows]
        lines.append(f"| {metric.name} | {' | '.join(cells)} |")
    table = "\n".join(lines)
    at = "" if step is None else f" at step {step}; the numbers are of its last step"
    return (
        f"---\ntags: [unlearning, dareu_jax]\n---\n# {name}\n\n"
        f"**{results['scale']}**\n\n"
        f"The model `{name}` of a dareu_jax run, seed {seed}{at}. The column "
        "`retrained`, where there is one, is a model that never saw the withdrawn "
        "owners.\n\n"
        f"{table}\n\n{summary.legend(one)}\n\n{LIMITS}"
    )
