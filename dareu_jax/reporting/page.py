"""HTML pages: one template for all, each file replaced in one step."""

import os
import tempfile
from pathlib import Path

import jinja2


def template_of(name: str) -> jinja2.Template:
    """Return a template of this folder; it escapes what it is given."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def write_page(path: Path, text: str) -> None:
    """Replace ``path`` in one step; characters UTF-8 cannot hold become ``?``.

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
