"""Arguments and options of `dareu`, those that several commands have first."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dareu_jax.errors import UserError
from dareu_jax.registry import load_plugin


def load_plugins(plugins: list[str] | None) -> list[str] | None:
    """Import plug-ins while the command line is read, before names are looked up."""
    for plugin in plugins or ():
        load_plugin(plugin)
    return plugins


def wording_of(changes: list[str] | None, **given: str | None) -> dict[str, Any]:
    """Return the fields of `Wording` that are asked for; those given None are not."""
    from dareu_jax.config import build_config
    from dareu_jax.config.load import parse_value

    asked: dict[str, Any] = {k: x for k, x in given.items() if x is not None}
    for item in changes or ():
        key, sign, value = item.partition("=")
        if not sign or key not in WORDING:
            known = ", ".join(WORDING)
            raise UserError(f"--wording {item}: give one of {known} as KEY=VALUE")
        asked[key] = parse_value(item, value)
    corpus = build_config({"corpus": asked}, "--wording").corpus
    return {key: getattr(corpus, key) for key in asked}


WORDING = ("answer_prefix", "add_bos", "chat_date", "chat_arguments")


def free_names(values: list[str] | None) -> list[str] | None:
    """Return the names of a repeated option, each as it is or a YAML list of them."""
    if values is None:
        return None
    return [name for value in values for name in _listed(value)]


def registered_names(values: list[str] | None) -> list[str] | None:
    """Return as `free_names` does names that have no comma, which may separate them."""
    names = free_names(values)
    if names is None:
        return None
    return [part.strip() for name in names for part in name.split(",") if part.strip()]


def _listed(value: str) -> list[str]:
    """Return the names in ``[a, 'b, c']``; any other text is one name."""
    if not value.lstrip().startswith("["):
        return [value]
    import yaml

    try:
        found = yaml.load(value, yaml.BaseLoader)  # every scalar stays a text
    except yaml.YAMLError:
        found = None
    if not isinstance(found, list) or not all(isinstance(x, str) for x in found):
        raise UserError(f"{value!r:.60} is no YAML list of names such as [a, 'b, c']")
    return found


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
Wording = Annotated[
    list[str] | None,
    typer.Option(help="answer_prefix, add_bos, chat_date or chat_arguments=VALUE."),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Texts at a time.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Of an answer.")]
Kernels = Annotated[
    list[str] | None, typer.Option(help="Of dareu list kernels (grad_dot).")
]
ToForget = Annotated[
    list[str] | None,
    typer.Option(
        help="forget01, forget05 ... (forget10), or an owner; again for each owner.",
        callback=free_names,
    ),
]
Attacks = Annotated[
    list[str] | None,
    typer.Option(
        help="loss,zlib,gradnorm ... (all of one forward pass).",
        callback=registered_names,
    ),
]
Tests = Annotated[
    list[str] | None,
    typer.Option(help="a,b of dareu list stress (all).", callback=registered_names),
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
