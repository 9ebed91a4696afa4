"""What every page is: one template for all, written whole or not at all."""

import os
import tempfile
from pathlib import Path

import jinja2


def template_of(name: str) -> jinja2.Template:
    """A template of this folder; what it is given is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def write_page(path: Path, text: str) -> None:
    """Replaces ``path`` in one step; characters UTF-8 cannot hold become ``?``.

    Raises:
      OSError: when the folder is missing, read-only or full.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode("utf-8", "replace"))
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
