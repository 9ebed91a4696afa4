"""One self-contained HTML page about a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from dareu_jax.reporting import summary
from dareu_jax.reporting.page import template_of, write_page

_ANSWERS_OPEN = 10
_HEADLINE = (
    ("ROUGE-L recall on the forget prompts", summary.ROUGE[0]),
    ("probability of the gold answers to them", summary.PROBABILITY[0]),
    ("ROUGE-L recall on the retain prompts", summary.ROUGE[1]),
    ("attribution to the forget owners, unseen classifier", summary.ATTRIBUTION[1]),
    ("Tug-of-War on ROUGE (1 = like retrained)", summary.ROUGE[3]),
)


def write_report(
    path: Path,
    results: dict[str, Any],
    curves: list[dict[str, Any]],
    answers: list[dict[str, Any]],
    config_yaml: str,
) -> None:
    """Writes the report to ``path``, whole or not at all.

    Args:
      path: the HTML file; its folder must exist.
      results: the content of ``results.json``; any part of it may be missing.
      curves: the rows of ``metrics.jsonl``.
      answers: every forget prompt with the gold answer and the models' answers.
      config_yaml: the resolved configuration.

    Raises:
      OSError: when the folder is missing, read-only or full.
    """
    write_page(path, render(results, curves, answers, config_yaml))


def render(
    results: Mapping[str, Any],
    curves: Sequence[Mapping[str, Any]],
    answers: Sequence[Mapping[str, Any]],
    config_yaml: str,
) -> str:
    """Returns the page; matplotlib loads here, on the first call only."""
    names = summary.model_names(results)
    return template_of("report.html.j2").render(
        scale=results.get("scale", "The scale of this run was not recorded."),
        names=names,
        seeds=list(results.get("seeds", {})),
        headline=headline(results),
        tables=_tables(results, names),
        gaps=summary.gaps(results),
        figures=_figures(results, curves),
        stopped=_stopped(results),
        answers=[_answer(answer) for answer in answers],
        answers_open=_ANSWERS_OPEN,
        wall=_wall(results.get("wall_s", {})),
        environment=results.get("environment", {}),
        config_yaml=config_yaml,
    )


def headline(results: Mapping[str, Any]) -> dict[str, Any]:
    """Returns key numbers of dareu beside original and retrained, or {}."""
    names = [
        name
        for name in ("original", "retrained", "dareu")
        if name in summary.model_names(results)
    ]
    rows = [
        (
            f"{words} {metric.arrow}",
            [(name, summary.cell(results, name, metric)) for name in names],
        )
        for words, metric in _HEADLINE
        if metric in summary.present(results, [metric])
    ]
    return {"names": names, "rows": rows} if "dareu" in names and rows else {}


def _tables(results: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    groups = (
        ("Forgetting and utility", summary.ROUGE + summary.PROBABILITY),
        ("Attribution and text quality", summary.ATTRIBUTION + summary.QUALITY),
        ("Further metrics", summary.extra_metrics(results)),
    )
    return [
        {
            "title": title,
            "metrics": shown,
            "rows": [
                (name, [summary.cell(results, name, metric) for metric in shown])
                for name in names
            ],
        }
        for title, metrics in groups
        if (shown := summary.present(results, metrics))
    ]


def _figures(
    results: Mapping[str, Any], curves: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    from dareu_jax.reporting import plots

    figures = (
        (
            "Forgetting against utility",
            "Large marks are means over seeds, small ones single seeds. The target is "
            "the retrained model (star and cross-hair), not a corner of the plot.",
            plots.balance_svg(results),
        ),
        (
            "Attribution to the forget owners",
            "The reward classifier is the one the methods trained against; only the "
            "unseen one can show that they did more than please the first.",
            plots.attribution_svg(results),
        ),
        (
            "Unlearning, update by update",
            "One line per method and seed, averaged over neighbouring updates.",
            plots.training_svg(curves),
        ),
        (
            "Fine-tuning and classifier losses",
            "One line per stage and seed.",
            plots.loss_svg(curves),
        ),
    )
    return [
        {"title": title, "caption": caption, "svg": Markup(svg)}
        for title, caption, svg in figures
        if svg
    ]


def _stopped(results: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Returns per method what ended it, seeds with the same end together."""
    ends: dict[str, dict[str, list[str]]] = {}
    for seed, row in results.get("stopped", {}).items():
        for name, reason in row.items():
            end = reason or "ran to its last update"
            ends.setdefault(name, {}).setdefault(end, []).append(seed)
    return [
        (name, [f"{end} (seed {', '.join(s)})" for end, s in ends[name].items()])
        for name in summary.order_models(ends)
    ]


def _answer(answer: Mapping[str, Any]) -> dict[str, Any]:
    texts = answer["answers"]
    return {
        "prompt": answer["prompt"],
        "gold": answer["gold"],
        "owner": answer.get("owner", ""),
        "texts": [(name, texts[name]) for name in summary.order_models(texts)],
    }


def _wall(wall_s: Mapping[str, float]) -> list[tuple[str, str]]:
    rows = [(stage, duration(seconds)) for stage, seconds in wall_s.items()]
    return [*rows, ("total", duration(sum(wall_s.values())))] if rows else []


def duration(seconds: float) -> str:
    """Returns for example ``"4.2 s"``, ``"3 min 05 s"`` or ``"2 h 07 min"``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"
