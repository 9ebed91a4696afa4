"""What every page is: one template for all."""

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
