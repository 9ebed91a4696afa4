"""Files and folders that appear whole or not at all."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dareu_jax.errors import UserError


def check_new(out: Path) -> None:
    """Raises `UserError` when ``out`` exists."""
    if out.exists():
        raise UserError(f"{out} exists already; choose another --out or delete it")


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a draft folder, the same in all processes, that then becomes ``out``."""
    from dareu_jax.parallel import is_first, wait_for_all

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


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; raises `UserError` naming what is wrong."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold an object")
    return value


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file from process 0, whole or not at all; the others wait."""
    from dareu_jax.parallel import is_first, wait_for_all

    if is_first():
        write_whole(path, text)
    wait_for_all(f"wrote {path}")


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file from this process alone: readers find the old one or the new one.

    Its folder is made; a character that UTF-8 cannot hold becomes ``?``.
    """
    held = content if isinstance(content, bytes) else content.encode("utf-8", "replace")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with draft.open("wb") as file:
            file.write(held)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Yield a draft folder that becomes ``out``, if no other process was first."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=out.parent, prefix=f".{out.name}-", ignore_cleanup_errors=True
    ) as draft:
        yield Path(draft)
        os.chmod(draft, 0o755)
        try:
            os.rename(draft, out)
        except OSError:
            if not out.exists():
                raise


def user_cache() -> Path:
    """The user's folder for what can be made or fetched again."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "dareu_jax"
