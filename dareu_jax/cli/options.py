"""Arguments and options of `dareu`, those that several commands have first."""

from pathlib import Path
from typing import Annotated

import typer

from dareu_jax.registry import load_plugin


def load_plugins(plugins: list[str] | None) -> list[str] | None:
    """Import plug-ins while the command line is read, before names are looked up."""
    for plugin in plugins or ():
        load_plugin(plugin)
    return plugins


Config = Annotated[Path, typer.Argument(help="YAML configuration of the run.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value, over the file.")
]
Finished = Annotated[Path, typer.Argument(help="Folder of a finished run.")]
ImportedModel = Annotated[Path, typer.Argument(help="Folder that dareu import wrote.")]
Row = Annotated[
    str, typer.Option(help="A row of the run's table; unlearned: its first method.")
]
Seed = Annotated[int | None, typer.Option(help="(default: the first)")]
Template = Annotated[
    str | None, typer.Option(help="Around {prompt}; chat: the tokenizer's own.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Texts at a time.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Of an answer.")]
Kernels = Annotated[
    list[str] | None, typer.Option(help="Of dareu list kernels (grad_dot).")
]
Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="FILE",
        help="Python file or module that registers more.",
        callback=load_plugins,
        is_eager=True,
    ),
]
Distributed = Annotated[
    bool, typer.Option("--distributed", help="One of the processes of a pod.")
]
Step = Annotated[
    int | None, typer.Option(help="A saved step of a method (default: the last).")
]
Partial = Annotated[
    bool, typer.Option("--partial", help="Score what is there of a log.")
]
