"""`dareu list`."""

from typing import Annotated

import typer
from rich.console import Console

from dareu_jax.cli import options
from dareu_jax.errors import UserError, did_you_mean
from dareu_jax.registry import REGISTRIES


def list_entries(
    kind: Annotated[str, typer.Argument(help=" | ".join(REGISTRIES))],
    plugin: options.Plugins = None,
) -> None:
    """List what can be named in a configuration."""
    if kind not in REGISTRIES:
        near = did_you_mean(kind, REGISTRIES)
        raise UserError(f"no registry {kind!r}{near}; known: {', '.join(REGISTRIES)}")
    console = Console(soft_wrap=True, highlight=False)
    entries = dict(REGISTRIES[kind].items())
    width = max(map(len, entries))
    for name, about in entries.items():
        console.print(f"{name:<{width}}  {about}", markup=False)
