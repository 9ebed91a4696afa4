"""One self-contained HTML page about every test that was done on a model."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from markupsafe import Markup

from dareu_jax.audits.stress.context import ROLES
from dareu_jax.audits.stress.plot import panel_svgs
from dareu_jax.audits.stress.robustness import robustness, robustness_sentence
from dareu_jax.audits.stress.table import LEGEND, cells, written
from dareu_jax.audits.stress.verdict import standing
from dareu_jax.config import RunConfig
from dareu_jax.registry import STRESS
from dareu_jax.reporting.page import template_of

CAPTIONS = {
    "relearn": "Probability of the forget answers while each model is trained: solid "
    "on the forget records, dashed on a few of them, dotted on their neighbours.",
    "sample": "Expected best ROUGE-L recall of k sampled answers; a line for each "
    "temperature.",
    "prefill": "ROUGE-L recall of what follows when the beginning of the gold answer "
    "is given.",
    "held_out": "Attribution to the forget owners of the first part of every answer, "
    "by the reward that the methods trained against and by one that none saw.",
}


class Page(NamedTuple):
    """What the page is about."""

    scale: str
    model: str
    seed: int
    cfg: RunConfig
    outcomes: Mapping[str, Mapping[str, Any]]
    shown: Mapping[str, Any]


def render(page: Page) -> str:
    """Returns the page; every text of the run is escaped."""
    about = dict(STRESS.items())
    svgs = panel_svgs(page.outcomes)
    figures = [
        {"title": name, "caption": CAPTIONS[name], "svg": Markup(svg)}
        for name, svg in svgs.items()
    ]
    return template_of("stress.html.j2").render(
        scale=page.scale,
        model=page.model,
        seed=page.seed,
        caveat=page.shown["caveat"],
        roles=ROLES,
        tests=[test_of(x, about[x], own) for x, own in page.outcomes.items()],
        left_out=[name for name in about if name not in page.outcomes],
        robustness=robustness_sentence(page.outcomes),
        legend=LEGEND,
        figures=figures,
        answers=[
            {**row, "texts": [x for x in row["answers"].items() if x[0] in ROLES]}
            for row in page.shown["answers"]
        ],
        records=page.shown["records"],
        settings=settings_of(page),
    )


def test_of(name: str, about: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """What the page says of one test."""
    return {
        "name": name,
        "about": about,
        "measure": found["measure"],
        "cells": cells(found["headline"]),
        "robustness": written(robustness(found)),
        "standing": standing(found["values"]),
        "verdict": found["verdict"],
        "skipped": found.get("skipped", {}),
        "parts": [(label, cells(own)) for label, own in found["parts"].items()],
    }


def settings_of(page: Page) -> list[tuple[str, Any]]:
    """The settings that the outcomes depend on, by key."""
    cfg = page.cfg
    read = {
        f"stress.{key}": "finetune's" if value is None else value
        for found in page.outcomes.values()
        for key, value in found["settings"].items()
    }
    run = {
        "corpus.source": cfg.corpus.source,
        "corpus.forget": ", ".join(cfg.corpus.forget),
        "reward.kernel": cfg.reward.kernel,
    }
    return [*run.items(), *read.items()]
