"""`dareu`: the command line; parses, calls the pipeline, prints."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dareu_jax import options
from dareu_jax.config import load_config
from dareu_jax.errors import Preempted, ProcessLost, UserError
from dareu_jax.prepare import check_disk, prepare_jax, read_steps
from dareu_jax.registry import REGISTRIES, did_you_mean

app = typer.Typer(
    help="De-attribute to forget: LLM unlearning with data attribution as the reward.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def run(
    config: options.Config,
    overrides: options.Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder (default: runs/<config's folder>).")
    ] = None,
    distributed: options.Distributed = False,
    profile: Annotated[
        str | None,
        typer.Option(metavar="A:B", help="Trace steps A to B of every stage."),
    ] = None,
) -> None:
    """Fine-tune, attribute, unlearn, compare with retraining, report.

    The same command again continues where it was stopped.
    """
    cfg = load_config(config, overrides or ())
    folder = out or Path("runs") / config.resolve().parent.name
    check_disk(folder)
    traced = read_steps(profile) if profile else None
    prepare_jax(distributed)
    from dareu_jax.config import dump_config
    from dareu_jax.parallel import Preemption, is_first, together
    from dareu_jax.reporting import print_answers, print_results
    from dareu_jax.reporting.progress import Progress
    from dareu_jax.reporting.report import write_report
    from dareu_jax.runs import pipeline
    from dareu_jax.tracking import read

    console = Console(quiet=not is_first())
    with together(), Preemption().listening() as preemption:
        results, answers = pipeline.run(
            cfg, folder, Progress(console), preemption, traced
        )
    if not is_first():
        return
    page = folder / "report.html"
    write_report(page, results, read(folder), answers, dump_config(cfg))
    console.print()
    print_answers(console, answers, cfg.evaluation.answers)
    print_results(console, results)
    console.print(f"results: {folder / 'results.json'}", soft_wrap=True)
    console.print(f"report:  {folder / 'report.html'}", soft_wrap=True)


@app.command("import")
def import_model(
    folder: Annotated[Path, typer.Argument(help="Hugging Face folder, safetensors.")],
    out: Annotated[Path, typer.Option(help="New folder, for model.path.")],
    plugin: options.Plugins = None,
) -> None:
    """Take in a Hugging Face folder: give the result to a run as model.path."""
    check_disk(out)
    prepare_jax()
    from dareu_jax.imported import import_folder

    made = import_folder(folder, out)
    Console(soft_wrap=True).print(f"model.path={made.folder}", markup=False)


@app.command()
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

    made = export_run(
        run_folder, model, out, model_card, seed=seed, adapter=adapter, step=step
    )
    Console(soft_wrap=True).print(f"model: {made}", markup=False)


@app.command()
def estimate(
    config: options.Config,
    overrides: options.Overrides = None,
    chips: Annotated[
        str, typer.Option(help="v5e-16, v5p-8, v6e-8 ... or cpu.")
    ] = "cpu",
) -> None:
    """Say what every step of a run needs on each device; nothing is loaded.

    The exit status is 1 where the largest step does not fit.
    """
    cfg = load_config(config, overrides or ())
    prepare_jax()
    from dareu_jax import estimate as sizes

    found = sizes.estimate(cfg, sizes.read_chips(chips))
    sizes.print_estimate(Console(), found)
    if not found.fits:
        raise typer.Exit(1)


@app.command()
def evaluate(
    folder: Annotated[
        Path, typer.Argument(help="Folder that dareu import or dareu run wrote.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the log.")],
    model: Annotated[
        str | None, typer.Option(help="Of a run: a row of its table (unlearned).")
    ] = None,
    seed: options.Seed = None,
    suite: Annotated[str, typer.Option(help="tofu, owners, muse or choices.")] = "tofu",
    data: Annotated[
        Path | None, typer.Option(help="Its files (tofu: downloaded).")
    ] = None,
    forget: Annotated[
        str | None,
        typer.Option(help="forget01, forget05 ... (forget10), or owners: alice,bob."),
    ] = None,
    first: Annotated[
        int | None, typer.Option(min=1, help="Rows of each of TOFU's sets (all).")
    ] = None,
    template: options.Template = None,
    system: Annotated[str | None, typer.Option(help="Before it, with chat.")] = None,
    batch_size: options.BatchSize = 16,
    max_new_tokens: options.MaxNewTokens = 200,
    attacks: Annotated[
        str | None,
        typer.Option(help="loss,zlib,gradnorm ... (all of one forward pass)."),
    ] = None,
    reference_model: Annotated[
        Path | None, typer.Option(help="Folder of the retrained model, for an attack.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Log of the retrained model.")
    ] = None,
    distributed: options.Distributed = False,
) -> None:
    """Judge a model by a benchmark: a log with every row, as open-unlearning has it."""
    check_disk(out)
    prepare_jax(distributed)
    from dareu_jax import evaluator
    from dareu_jax.parallel import is_first, together
    from dareu_jax.reporting.progress import Progress

    reading = (template, system, batch_size, max_new_tokens)
    source, compared = (folder, suite, out, data), (attacks, reference_model)
    asked = evaluator.Asked(*source, forget, first, *reading, model, seed, *compared)
    progress = Progress(Console(stderr=True, quiet=not is_first()))
    with together():
        made = evaluator.evaluated(asked, progress)
    if is_first():
        evaluator.print_log(Console(), made, reference)
        Console(soft_wrap=True).print(f"log: {made}", markup=False)


@app.command()
def attribute(
    model: options.ImportedModel,
    records: Annotated[
        Path, typer.Argument(help="JSONL: owner, prompt, response of training text.")
    ],
    queries: Annotated[
        Path, typer.Argument(help="JSONL: prompt, response; without one it is asked.")
    ],
    kernel: Annotated[
        str | None, typer.Option(help="Of dareu list kernels (grad_dot).")
    ] = None,
    index: Annotated[
        Path | None, typer.Option(help="Folder: read if it is there, else made.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="scores.csv or scores.json.")] = None,
    top: Annotated[int, typer.Option(min=0, help="Records named per answer.")] = 0,
    owner: Annotated[
        str | None, typer.Option(help="Name records of this owner alone (--top 5).")
    ] = None,
    template: options.Template = None,
    batch_size: options.BatchSize = 8,
    max_new_tokens: options.MaxNewTokens = 64,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="attribution.damping=0.01, ...")
    ] = None,
    plugin: options.Plugins = None,
) -> None:
    """Say whose text answers come from: a score for every owner, the top records."""
    prepare_jax()
    from dareu_jax import attributor
    from dareu_jax.reporting.progress import Progress

    if out is not None:
        attributor.check_out(out)
    if index is not None:
        check_disk(index)
    asked = attributor.Asked(
        model=model,
        records=records,
        queries=queries,
        index=index,
        kernel=kernel,
        template=template,
        changes=change or (),
        batch_size=batch_size,
        top=top or (5 if owner else 0),
        owner=owner,
        max_new_tokens=max_new_tokens,
    )
    found = attributor.attributed(asked, Progress(Console(stderr=True)))
    console = Console()
    attributor.print_attributed(console, found)
    if out is not None:
        attributor.write(found, out)
        console.print(f"scores: {out}", soft_wrap=True, markup=False)


@app.command()
def fidelity(
    config: options.Config,
    overrides: options.Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder (default: runs/<config's folder>_<its name>)."),
    ] = None,
) -> None:
    """Retrain without owners and see which kernel said it beforehand.

    The same command again continues where it was stopped.
    """
    cfg = load_config(config, overrides or ())
    folder = out or Path("runs") / f"{config.resolve().parent.name}_{config.stem}"
    check_disk(folder)
    prepare_jax()
    from dareu_jax import fidelity as against
    from dareu_jax.reporting.progress import Progress

    console = Console()
    results = against.fidelity(cfg, folder, Progress(console))
    against.print_fidelity(console, results)
    console.print(f"results: {folder / 'fidelity.json'}", soft_wrap=True)
    console.print(f"plot:    {folder / 'fidelity.svg'}", soft_wrap=True)


@app.command()
def stress(
    run_folder: options.Finished,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="stress.key=value, over the run's.")
    ] = None,
    tests: Annotated[str, typer.Option(help="a,b of dareu list stress (all).")] = "",
    model: options.Row = "unlearned",
    seed: options.Seed = None,
    distributed: options.Distributed = False,
) -> None:
    """Try to bring unlearned data back, beside the retrained model.

    The same command again runs what is missing.
    """
    prepare_jax(distributed)
    from dareu_jax import stress as attempts
    from dareu_jax.parallel import Preemption, is_first, together
    from dareu_jax.reporting.progress import Progress

    console = Console(quiet=not is_first())
    progress, names = Progress(console), [name for name in tests.split(",") if name]
    with together(), Preemption().listening() as preemption:
        made = attempts.stress(
            run_folder, progress, names, model, seed, overrides or (), preemption
        )
    if not is_first():
        return
    attempts.print_stress(console, made)
    console.print(f"kept in: {made.folder}", soft_wrap=True, markup=False)
    console.print(f"report:  {made.report}", soft_wrap=True, markup=False)


@app.command()
def doctor(
    model: options.ImportedModel,
    records: Annotated[
        Path | None,
        typer.Option(help="JSONL: owner, prompt, response; none: the model's own."),
    ] = None,
    kernel: options.Kernels = None,
    rows: Annotated[int, typer.Option(min=2, help="Texts indexed, and asked.")] = 16,
    out: Annotated[
        Path | None, typer.Option("--json", help="File for the report.")
    ] = None,
    plugin: options.Plugins = None,
) -> None:
    """Say whether attribution scores of a model on these devices can be trusted.

    The exit status is 1 where a check fails.
    """
    prepare_jax()
    from dareu_jax import doctor as self_test

    if out is not None:
        self_test.check_place(out)
    report = self_test.examine(model, records, kernel or ("grad_dot",), rows)
    self_test.print_report(Console(), report)
    if out is not None:
        self_test.write(report, out)
    if not report.trusted:
        raise typer.Exit(1)


@app.command("score-logs")
def score_logs(
    candidate: Annotated[Path, typer.Argument(help="Log of an evaluation, JSON.")],
    reference: Annotated[
        Path | None, typer.Option(help="Log of the model retrained without the data.")
    ] = None,
    retrained_again: Annotated[
        Path | None, typer.Option(help="Of another seed: what can be expected.")
    ] = None,
    truth_ratio: Annotated[
        str | None, typer.Option(help="geometric (the default), arithmetic, share.")
    ] = None,
    partial: options.Partial = False,
    check_rouge: Annotated[
        bool, typer.Option("--check-rouge", help="From the answers, row by row.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    plots: Annotated[Path | None, typer.Option(help="FILE.png for the curves.")] = None,
) -> None:
    """Compute every aggregate of an evaluation again from its rows; no model.

    Logs of open-unlearning (*_EVAL.json), of locuslab/tofu (eval_log*.json and
    eval_log_aggregated.json), and owners.json of a run.
    """
    from dareu_jax.evaluation.log_files import score_files
    from dareu_jax.reporting.scores import print_json, print_scores

    how = (truth_ratio, partial, check_rouge, retrained_again, as_json)
    found = score_files(candidate, reference, *how)
    if plots is not None:
        from dareu_jax.reporting.log_plots import plot_files

        if not plot_files(plots, candidate, reference, truth_ratio, partial):
            raise UserError(f"--plots: {candidate} has no rows of anything to draw")
    show = print_json if as_json else print_scores
    show(Console(), found)


@app.command("list")
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


def main(command: Callable[[], None] = app) -> None:
    """Runs the command line; bad input ends with its message and status 2."""
    try:
        command()
    except Preempted as news:
        print(f"dareu: SIGTERM: {news}; the same command continues", file=sys.stderr)
    except ProcessLost as error:
        print(f"dareu: {error}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(1)  # an ordinary exit would wait for the process that is gone
    except UserError as error:
        print(f"dareu: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        name = f" {error.filename}" if error.filename else ""
        print(f"dareu: {error.strerror or error}{name}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("dareu: stopped; the same command continues", file=sys.stderr)
        sys.exit(130)
