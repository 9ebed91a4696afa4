"""The report of a run: one HTML page that needs no other file."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from dareu_jax.reporting import summary
from dareu_jax.reporting.page import template_of

_ANSWERS_OPEN = 10


def render(
    results: Mapping[str, Any],
    curves: Sequence[Mapping[str, Any]],
    answers: Sequence[Mapping[str, Any]],
    config_yaml: str,
) -> str:
    """Return the page; any part of ``results``, of results.json, may be missing."""
    names = summary.model_names(results)
    return template_of("report.html.j2").render(
        scale=results.get("scale", "The scale of this run was not recorded."),
        names=names,
        seeds=list(results.get("seeds", {})),
        headline=headline(results),
        tables=_tables(results, names),
        validity=_validity(results),
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
    """Return key numbers of the first method beside original and retrained, or {}."""
    names = summary.with_one_method(summary.model_names(results))
    rows = [
        (f"{x.in_short} {x.arrow}", [(n, summary.cell(results, n, x)) for n in names])
        for x in summary.columns(results)
        if x.in_short
    ]
    has_method = any(name not in summary.ORACLES for name in names)
    return {"names": names, "rows": rows} if has_method and rows else {}


def _validity(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return per seed how well the reward tells the original's answers from others'."""
    seeds = results.get("seeds", {}).items()
    found = ((seed, entry.get("validity")) for seed, entry in seeds)
    return [{"seed": seed, **valid} for seed, valid in found if valid]


def _tables(results: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    tables = []
    for title, groups in summary.TABLES.items():
        if shown := summary.columns(results, *groups):
            rows = [(n, [summary.cell(results, n, x) for x in shown]) for n in names]
            tables.append({"title": title, "metrics": shown, "rows": rows})
    return tables


def _figures(
    results: Mapping[str, Any], curves: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    from dareu_jax.reporting import plots

    stages = (row["stage"] for row in curves)
    colours = plots.colours([*summary.model_names(results), *stages])
    figures = (
        (
            "Forgetting against utility",
            "Large marks are means over seeds, small ones single seeds. The target is "
            "the retrained model (star and cross-hair), not a corner of the plot.",
            plots.balance_svg(results, colours),
        ),
        (
            "Attribution to the forget owners",
            "The reward classifier is the one the methods trained against; only the "
            "unseen one can show that they did more than please the first.",
            plots.bars_svg(results, "attribution", colours),
        ),
        (
            "Further metrics",
            "Means over seeds, with the standard deviation.",
            plots.bars_svg(results, "further", colours),
        ),
        (
            "Unlearning, update by update",
            "One line per method and seed, averaged over neighbouring updates.",
            plots.training_svg(curves, colours),
        ),
        (
            "Fine-tuning and classifier losses",
            "One line per stage and seed.",
            plots.loss_svg(curves, colours),
        ),
    )
    return [
        {"title": title, "caption": caption, "svg": Markup(svg)}
        for title, caption, svg in figures
        if svg
    ]


def _stopped(results: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Return per method what ended it, seeds with the same end together."""
    ends: dict[str, dict[str, list[str]]] = {}
    for seed, row in results.get("stopped", {}).items():
        for name, reason in row.items():
            end = reason or "ran to its last update"
            ends.setdefault(name, {}).setdefault(end, []).append(seed)
    return [
        (name, [f"{end} (seed {', '.join(s)})" for end, s in own.items()])
        for name, own in ends.items()
    ]


def _answer(answer: Mapping[str, Any]) -> dict[str, Any]:
    texts = answer["answers"]
    ordered = [(name, texts[name]) for name in summary.order_models(texts)]
    return {"owner": "", **answer, "texts": ordered}


def _wall(wall_s: Mapping[str, float]) -> list[tuple[str, str]]:
    rows = {**wall_s, "total": sum(wall_s.values())} if wall_s else {}
    return [(stage, duration(seconds)) for stage, seconds in rows.items()]


def duration(seconds: float) -> str:
    """Return for example ``"4.2 s"``, ``"3 min 05 s"`` or ``"2 h 07 min"``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"
