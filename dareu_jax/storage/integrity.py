"""Whether a saved step is whole: its manifest, its checksums, its leaves.

The manifest (sha256 of every file, shape and dtype of every leaf) is added when all
else of a step is on disk, so a step without one is a save that did not finish.
"""

import hashlib
import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dareu_jax.errors import UserError, first_line
from dareu_jax.parallel import named_leaves
from dareu_jax.storage.files import write_whole

MANIFEST = "integrity.json"
Leaves = dict[str, list]
"""``{path: [shape, dtype]}`` of a tree."""


def write_manifest(folder: Path, about: dict[str, Any]) -> None:
    """Write a step's manifest: ``leaves``, ``metric`` and what else is in ``about``."""
    metric = about["metric"]
    if metric is None or not math.isfinite(metric):
        metric = None
    manifest = {**about, "metric": metric, "files": _hashes(folder)}
    write_whole(folder / MANIFEST, json.dumps(manifest))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a step of which `problem` says nothing."""
    return json.loads((folder / MANIFEST).read_text())


def read_meta(folder: Path) -> dict[str, Any]:
    """Return the meta of a step of which `problem` says nothing."""
    return json.loads((folder / "meta" / "metadata").read_text())


def read_metric(folder: Path) -> float | None:
    """A step's metric; none where it has none or its manifest cannot be read."""
    try:
        return read_manifest(folder).get("metric")
    except (OSError, ValueError, AttributeError):
        return None


def problem(folder: Path) -> str:
    """Says why a step cannot be trusted; empty when it can."""
    try:
        wanted = read_manifest(folder)["files"]
        found = _hashes(folder)
    except FileNotFoundError:
        return "its save did not finish"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest cannot be read: {first_line(error)}"
    for name in wanted:
        if name not in found:
            return f"{name} is missing"
        if found[name] != wanted[name]:
            return f"{name} has changed since it was saved"
    return ""


def describe(tree: Any) -> Leaves:
    """Shape and dtype of every leaf."""
    return {path: [list(x.shape), str(x.dtype)] for path, x in named_leaves(tree)}


def check_leaves(where: str, found: Leaves, target: Any) -> None:
    """Raise `UserError` for the first leaf on disk that differs from the one wanted."""
    wanted = describe(target)
    for path in [*wanted, *(path for path in found if path not in wanted)]:
        if found.get(path) != wanted.get(path):
            raise UserError(
                f"{where} does not fit this configuration: {path} is "
                f"{_shape(found.get(path))} there, {_shape(wanted.get(path))} wanted; "
                "use another output folder or the configuration that wrote it"
            )


def _shape(leaf: list | None) -> str:
    return f"{leaf[1]}{leaf[0]}" if leaf else "absent"


def _hashes(folder: Path) -> dict[str, str]:
    own = folder / MANIFEST
    paths = sorted(x for x in folder.rglob("*") if x.is_file() and x != own)
    with ThreadPoolExecutor() as pool:
        hashes = list(pool.map(_sha256, paths))
    return {str(path.relative_to(folder)): h for path, h in zip(paths, hashes)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
