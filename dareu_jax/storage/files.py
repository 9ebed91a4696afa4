"""Files and folders that appear whole or not at all."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dareu_jax.errors import UserError
from dareu_jax.parallel import is_first, wait_for_all


def check_new(out: Path) -> None:
    """Raises `UserError` when ``out`` exists."""
    if out.exists():
        raise UserError(f"{out} exists already; choose another --out or delete it")


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yields a draft folder that becomes ``out`` when the block ends without error.

    Every process gets the same draft, on a disk that all of them see; process 0 makes
    and renames it.

    Raises:
      UserError: ``out`` exists.
    """
    check_new(out)
    wait_for_all(f"looked for {out}")
    first = is_first()
    draft = out.parent / f".{out.name}.partial"
    if first:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
    wait_for_all(f"made {draft}")
    try:
        yield draft
        wait_for_all(f"filled {draft}")
        if first:
            draft.rename(out)
        wait_for_all(f"renamed {draft}")
    finally:
        if first:
            shutil.rmtree(draft, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file from process 0, whole or not at all."""
    if is_first():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(path.suffix + ".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    wait_for_all(f"wrote {path}")


def user_cache() -> Path:
    """The user's folder for what can be made or fetched again."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "dareu_jax"
