"""Scores as a table on the screen, as CSV, as JSON."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dareu_jax.attribution.asked import Attributed
from dareu_jax.attribution.store import SIGN
from dareu_jax.errors import UserError
from dareu_jax.registry import KERNELS

OWNERS, ANSWERS, LETTERS = 3, 20, 160
"""How many owners of an answer, answers, and letters of one the screen shows."""


def as_rows(found: Attributed) -> list[dict[str, Any]]:
    """One JSON object per query; its owner is the one of the highest score."""
    rows = []
    pairs = zip(found.queries, found.answers, strict=True)
    for at, (query, answer) in enumerate(pairs):
        scores = dict(zip(found.owners, map(float, found.scores[at]), strict=True))
        row: dict[str, Any] = {
            "id": query.id,
            "prompt": query.prompt,
            "response": answer,
            "owner": max(scores, key=scores.__getitem__),
            "scores": scores,
        }
        if found.top is not None:
            row["records"] = [
                {"id": n.record.id, "owner": n.record.owner, "score": n.score}
                for n in found.top[at]
            ]
        rows.append(row)
    return rows


def as_csv(found: Attributed) -> str:
    """A column ``score_NAME`` per owner, and ``record_1`` ... with ids of records."""
    out, rows = io.StringIO(), as_rows(found)
    ranks = range(1, 1 + max((len(row.get("records", ())) for row in rows), default=0))
    head = ["id", "prompt", "response", "owner"]
    writer = csv.writer(out, lineterminator="\n")
    scored = [f"score_{owner}" for owner in found.owners]
    writer.writerow([*head, *scored, *(f"record_{n}" for n in ranks)])
    for row in rows:
        scores = [f"{row['scores'][owner]:.8g}" for owner in found.owners]
        top = [record["id"] for record in row.get("records", ())]
        writer.writerow([*(row[name] for name in head), *scores, *top])
    return out.getvalue()


def as_json(found: Attributed) -> str:
    """The kernel, what its scores are, and `as_rows`."""
    about = {"kernel": found.kernel, "unit": unit_of(found.kernel), "sign": SIGN}
    tree = {**about, "answers": as_rows(found)}
    return json.dumps(tree, indent=1, ensure_ascii=False) + "\n"


def unit_of(kernel: str) -> str:
    """What a score of the kernel is, in a line."""
    return dict(KERNELS.items())[kernel]


def check_out(path: Path) -> None:
    """Raises `UserError` where scores cannot be written as CSV or JSON."""
    if path.suffix not in (".csv", ".json"):
        raise UserError(f"--out {path}: the name must end in .csv or .json")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UserError(f"--out {path}: give a file in a folder that exists")


def as_file(found: Attributed, path: Path) -> str:
    """Return what a file holds: JSON or CSV, by its name."""
    return as_json(found) if path.suffix == ".json" else as_csv(found)


def print_attributed(console: Console, found: Attributed) -> None:
    """Prints the best owners of the first answers, and what the scores are."""
    out = console if console.is_terminal else Console(file=console.file, width=120)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in ("id", "answer", "owners, highest first"):
        table.add_column(heading, overflow="fold")
    if found.top is not None:
        whose = f"records of {found.top_of}" if found.top_of else "records"
        table.add_column(escape(f"{whose}, highest first"), overflow="fold")
    rows = as_rows(found)
    for row in rows[:ANSWERS]:
        best = sorted(row["scores"].items(), key=lambda pair: -pair[1])[:OWNERS]
        cells = [row["id"], shortened(row["response"])]
        cells.append("\n".join(f"{name} {score:.3g}" for name, score in best))
        if found.top is not None:
            ids = (f"{n['id']} {n['score']:.3g}" for n in row["records"])
            cells.append("\n".join(ids))
        table.add_row(*map(escape, cells))
    out.print(table)
    more = len(rows) - ANSWERS
    if more > 0:
        out.print(f"... and {more} more answers; --out FILE has them all")
    said = f"\n{found.kernel}: {unit_of(found.kernel)}\n{SIGN}"
    out.print(said, markup=False, highlight=False, soft_wrap=True)


def shortened(text: str) -> str:
    """The text in one line, and no longer than a screen can show."""
    line = " ".join(text.split())
    return line if len(line) <= LETTERS else line[: LETTERS - 3] + "..."
