"""The page about a model's stress tests: whole, escaped, self-contained."""

import re

import pytest

from dareu_jax.audits.stress.context import ROLES, outcome
from dareu_jax.audits.stress.report import Page, render
from dareu_jax.config import build_config
from dareu_jax.registry import STRESS

BAD = "<script>alert(1)</script>"
CURVE = {role: [0.1, 0.2] for role in ROLES}
CURVES = {
    "relearn": {
        "steps": [0, 1],
        "curves": {
            kind: {role: {"probability": [0.0, 1.0]} for role in ROLES}
            for kind in ("forget rows", "few rows", "neighbours")
        },
        "robustness": {"mean over the updates": 0.5},
    },
    "sample": {"k": [1, 2], "curves": {"1": CURVE}},
    "prefill": {"shares": [0.0, 0.5], "curve": CURVE},
    "held_out": {"prefixes": [0.5, 1.0], "curves": {"reward": CURVE}},
    "quantise": {"robustness": {"nf4": {"probability": 1.0, "rouge": 1.0}}},
}


def found(name):
    values = {"original": [0.9] * 4, "retrained": [0.1] * 4, "unlearned": [0.3] * 4}
    more = CURVES.get(name, {})
    kept = outcome(f"{BAD} of {name}", values, "it leaks", {"a part": values}, **more)
    return {"settings": {"steps": 7}, **kept}


def page_of(names=(), records=30, caveat="", **texts):
    rows = [
        {
            "prompt": f"{BAD} {n}?",
            "gold": BAD,
            "owner": BAD,
            "answers": dict.fromkeys(ROLES, BAD) | texts,
        }
        for n in range(20)
    ]
    shown = {"answers": rows, "records": records, "caveat": caveat}
    cfg = build_config({"corpus": {"forget": ["owner_001"]}})
    outcomes = {name: found(name) for name in names or STRESS.names()}
    return render(Page(f"Scale: {BAD}", "npo", 3, cfg, outcomes, shown))


@pytest.fixture(scope="module")
def page():
    return page_of()


def words(page):
    """What a reader sees, in one line."""
    body = re.sub(r"<(style|svg).*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", body).split())


def test_every_test_has_a_row_a_verdict_and_its_parts(page):
    for name in STRESS.names():
        row = page[page.index(f'<th scope="row">{name}</th>') :].split("</tr>")[0]
        for cell in ("0.900", "0.100", "0.300", "above retrained"):
            assert f"{cell}</td>" in row, (name, cell)
    assert page.count("0.200 ± 0.000 above; it leaks.") == len(STRESS.names())
    assert page.count('<th scope="row">a part</th>') == len(STRESS.names())


def test_the_first_line_is_the_scale_and_the_limits_are_said(page):
    text = words(page)
    assert text[text.index("Scale:") :].startswith("Scale: &lt;script&gt;")
    assert "it is no proof that another would not" in text
    assert "unlearned: npo, seed 3" in text and "on 30 forget records" in text
    assert "The first 20 of 30, in their order, none picked" in text
    assert "stress.steps 7" in text and "corpus.forget owner_001" in text
    assert (
        "harmonic mean of R = 0.500 (relearn) and Q = 1.000 (quantise): 0.667" in text
    )
    assert not re.search("erased|certified|removed", text, re.I)


def test_the_page_is_self_contained_and_escaped(page):
    assert BAD not in page and page.count("<svg") == 4
    assert not re.search(r"https?://|<link|<img|@import|<script|url\((?!#)", page)
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert page_of() == page


def test_what_was_not_done_is_named_and_has_no_plot():
    page = page_of(["hacking"])
    assert "<svg" not in page and "Not done: held_out, prefill, prompts" in page
    assert "Robustness" not in page


def test_broken_answers_are_said_before_the_table():
    page = page_of(["hacking"], caveat="But its answers are broken.", unlearned=" ")
    assert page.index("But its answers are broken.") < page.index("<table")
    assert page.count("<em>(empty)</em>") == 20
