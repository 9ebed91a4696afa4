"""The HTML page: escaped, self-contained, whole, and fine with parts missing."""

import html.parser
import re

import pytest

from dareu_jax.reporting.report import duration, render

VOID = {"meta", "br", "hr", "img", "link", "input"}
CLAIMS = ("erased", "certified", "equivalent to retraining", "removes the data")


class Balanced(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.ids, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.ids += [value for key, value in attrs if key == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.ids += [value for key, value in attrs if key == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        inside = set(self.open) & {"style", "title"}
        if data.strip() and not inside:
            self.text.append(data.strip())


def parse(page):
    parser = Balanced()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


@pytest.fixture
def page(make_results, curves, answers):
    return render(make_results(3), curves, answers, "seed: 0\n")


def test_whole_page(page):
    parsed = parse(page)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert parsed.text[0] == "Scale: a tiny model on made-up text."
    assert page.count("<svg") == 4
    assert "seed: 0" in page and "1 min 05 s" in page and "0.10.2" in page
    assert '<tr class="target"><th scope="row">retrained' in page
    assert "ran to its last update (seed 0, 1, 2)" in page


def test_says_no_more_than_the_tests_can(page):
    text = " ".join(parse(page).text).lower()
    assert "reduced as far as these tests can see" in " ".join(text.split())
    assert not [claim for claim in CLAIMS if claim in text]


def test_self_contained(page):
    assert not re.search(r"https?://|<link|<img|@import|<script|url\((?!#)", page)
    assert all(ref.startswith("#") for ref in re.findall(r'href="([^"]*)"', page))


def test_answers_are_escaped(make_results):
    bad = "<script>alert(1)</script>"
    answer = {"prompt": bad, "gold": bad, "owner": bad, "answers": {"dareu": bad}}
    results = make_results(1)
    results["scale"] = results["environment"]["jax"] = bad
    results["stopped"] = {"0": {"dareu": bad}}
    page = render(results, [], [answer], bad)
    assert bad not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 8


def test_answers_past_ten_are_collapsed(page, make_results, answers):
    start = page.index("Show the other 2")
    assert page.index("10. Question 9?") < start < page.index("11. Question 10?")
    assert "Show the other" not in render(make_results(1), [], answers[:10], "")


@pytest.mark.parametrize("names", [("original", "dareu"), ("npo",), ("mine",)])
def test_without_a_target(make_results, names):
    page = render(make_results(1, names) if names[0] == "original" else {}, [], [], "")
    parse(page)
    assert "so the target is unknown" in page and '<tr class="target"' not in page


def test_nothing_but_the_scale():
    page = render({"scale": "Scale: nothing."}, [], [], "")
    parse(page)
    assert "No results were recorded." in page and "<svg" not in page


def test_gaps_in_the_curves_are_left_out(make_results):
    rows = [
        {"stage": "npo", "step": 0, "reward": None, "kl_reference": float("nan")},
        {"stage": "npo", "step": 1, "loss": 2.0},
    ]
    page = render({}, rows, [], "")
    assert "<svg" not in page


def test_a_model_without_attribution_has_no_bar(make_results):
    results = make_results(1)
    del results["seeds"]["0"]["models"]["dareu"]["attribution_reward"]
    del results["models"]["dareu"]["attribution_reward"]
    page = render(results, [], [], "")
    parse(page)
    assert "nan" not in page


def test_same_input_same_bytes(page, make_results, curves, answers):
    assert render(make_results(3), curves, answers, "seed: 0\n") == page


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0.0 s"), (4.21, "4.2 s"), (59.97, "1 min 00 s"), (185, "3 min 05 s")),
        *((3599.7, "1 h 00 min"), (7620, "2 h 07 min")),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text
