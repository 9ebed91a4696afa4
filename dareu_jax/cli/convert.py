"""`dareu import` and `dareu export`."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dareu_jax.cli import options
from dareu_jax.cli.startup import check_disk, prepare_jax


def import_model(
    source: Annotated[
        Path, typer.Argument(help="Hugging Face folder (safetensors), or a GGUF file.")
    ],
    out: Annotated[Path, typer.Option(help="New folder, for model.path.")],
    base: Annotated[
        Path | None, typer.Option(help="Of a PEFT adapter: its model's folder.")
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Tokenizer folder in place of a GGUF file's own."),
    ] = None,
    plugin: options.Plugins = None,
) -> None:
    """Take in a Hugging Face folder or GGUF file: give the result as model.path."""
    check_disk(out)
    prepare_jax()
    from dareu_jax.models.hf.imported import import_folder
    from dareu_jax.training.progress import Progress

    progress = Progress(Console(stderr=True))
    with progress.stage(f"import of {source.name}", 100) as advance:
        made = import_folder(
            source,
            out,
            base=base,
            tokenizer=tokenizer,
            say=_say,
            shown=lambda share: advance(round(100 * share), "% of its parameters"),
        )
    Console(soft_wrap=True).print(f"model.path={made.folder}", markup=False)


def _say(sentence: str) -> None:
    print(f"dareu: {sentence}", file=sys.stderr)


def export(
    run_folder: options.Finished,
    out: Annotated[Path, typer.Option(help="New folder, for transformers or vLLM.")],
    model: options.Row = "unlearned",
    seed: options.Seed = None,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="A PEFT adapter instead (lora runs).")
    ] = False,
    step: options.Step = None,
) -> None:
    """Write a run's model as a Hugging Face folder."""
    check_disk(out)
    prepare_jax()
    from dareu_jax.reporting.card import model_card
    from dareu_jax.runs.export import export_run
    from dareu_jax.training.progress import Progress

    with Progress(Console(stderr=True)).stage(f"export of {model}", 1):
        made = export_run(
            run_folder, model, out, model_card, seed=seed, adapter=adapter, step=step
        )
    Console(soft_wrap=True).print(f"model: {made}", markup=False)
